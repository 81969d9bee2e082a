//! Times as HQ takes them.

use std::time::{SystemTime, UNIX_EPOCH};

/// `time` in UTC as the Python node writes it: ISO 8601 with microseconds and `+00:00`.
/// A time before 1970 is written as 1970.
pub fn iso_utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to civil date in the proleptic Gregorian calendar, in years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}+00:00",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_times() {
        for (seconds, micros, want) in [
            (0, 0, "1970-01-01T00:00:00.000000+00:00"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000+00:00"),
            (1_795_489_208, 926_391, "2026-11-24T03:00:08.926391+00:00"),
            (4_107_542_399, 999_999, "2100-02-28T23:59:59.999999+00:00"),
            (4_107_542_400, 1, "2100-03-01T00:00:00.000001+00:00"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros);
            assert_eq!(iso_utc(time), want);
        }
        assert_eq!(
            iso_utc(UNIX_EPOCH - Duration::from_secs(5)),
            iso_utc(UNIX_EPOCH)
        );
    }
}
