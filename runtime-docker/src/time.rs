//! Points in time as the engine and our labels write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads RFC 3339 as Go writes it. Go's zero time, which means "never", is `None`.
pub(crate) fn from_engine(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let sane =
        (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sane {
        return None;
    }
    let (clock, zone) = rest.split_at(rest.find(['Z', '+', '-'])?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut clock = clock.splitn(3, ':').map(str::parse::<u32>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let nanos = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let seconds = days(year, month, day) * 86_400 + i64::from(hour * 3600 + minute * 60 + second)
        - offset(zone)?;
    UNIX_EPOCH.checked_add(Duration::new(u64::try_from(seconds).ok()?, nanos))
}

fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let minutes = hours.parse::<u16>().ok()? * 60 + minutes.parse::<u16>().ok()?;
    Some(sign * i64::from(minutes) * 60)
}

/// Days since 1970 in the Gregorian calendar, for years from 1970.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that a leap day is the last one.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// Seconds and nanoseconds since 1970, for labels.
pub(crate) fn to_label(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:09}", since.as_secs(), since.subsec_nanos())
}

/// Reads what [`to_label`] wrote.
pub(crate) fn from_label(text: &str) -> Option<SystemTime> {
    let (seconds, nanos) = text.split_once('.')?;
    let nanos: u32 = nanos.parse().ok()?;
    if nanos >= 1_000_000_000 {
        return None;
    }
    UNIX_EPOCH.checked_add(Duration::new(seconds.parse().ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_times_are_read() {
        let at = |secs, nanos| Some(UNIX_EPOCH + Duration::new(secs, nanos));
        assert_eq!(from_engine("1970-01-01T00:00:00Z"), at(0, 0));
        assert_eq!(
            from_engine("2000-02-29T23:59:59.5Z"),
            at(951_868_799, 500_000_000)
        );
        assert_eq!(
            from_engine("2026-11-24T23:12:57.123456789Z"),
            at(1_795_561_977, 123_456_789)
        );
        assert_eq!(
            from_engine("2026-11-25T00:12:57+01:00"),
            at(1_795_561_977, 0)
        );
        assert_eq!(from_engine("0001-01-01T00:00:00Z"), None);
        for bad in [
            "",
            "2026",
            "2026-11-24T",
            "2026-13-24T00:00:00Z",
            "2026-11-24T00:00:00",
        ] {
            assert_eq!(from_engine(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn labels_round_trip(secs in 0..10_000_000_000_u64, nanos in 0..1_000_000_000_u32) {
            let time = UNIX_EPOCH + Duration::new(secs, nanos);
            proptest::prop_assert_eq!(from_label(&to_label(time)), Some(time));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = (from_engine(&text), from_label(&text));
        }
    }
}
