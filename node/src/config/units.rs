//! Amounts as people write them: `512MiB`, `90s`, `1.5` processors.

use std::time::Duration;

/// A size in bytes: a whole number with an optional unit, either decimal
/// (`kB`, `MB`, `GB`, `TB`) or binary (`KiB`, `MiB`, `GiB`, `TiB`; as Kubernetes
/// writes them, also `Ki`, `Mi`, `Gi`, `Ti`). Nothing is rounded.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        "TiB" | "Ti" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// The largest binary unit that shows `bytes` exactly.
pub fn show_size(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        let one = 1_u64 << shift;
        if bytes >= one && bytes.is_multiple_of(one) {
            return format!("{}{unit}", bytes / one);
        }
    }
    format!("{bytes}B")
}

/// A duration: one or more whole numbers with a unit (`ms`, `s`, `m`, `h`, `d`),
/// such as `90s` or `1h30m`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let number: u64 = number.parse().ok()?;
        let part = match unit.trim() {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" | "min" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "d" => Duration::from_secs(number.checked_mul(86_400)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = tail;
    }
    Some(total)
}

/// Processors in thousandths: `2` is 2000, `0.25` is 250, `1500m` is 1500.
pub fn cpus(text: &str) -> Option<u32> {
    let text = text.trim();
    if let Some(milli) = text.strip_suffix('m') {
        return number(milli)?.try_into().ok();
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 || (text.contains('.') && part.is_empty()) {
        return None;
    }
    let thousandths = if part.is_empty() {
        0
    } else {
        number(&format!("{part:0<3}"))?
    };
    number(whole)?
        .checked_mul(1000)?
        .checked_add(thousandths)?
        .try_into()
        .ok()
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits);
    Some((number(digits)?, unit.trim_start()))
}

/// Digits only: `u64::from_str` alone would take a plus sign.
fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_exact() {
        for (text, bytes) in [
            ("0", 0),
            ("1536", 1536),
            ("512MiB", 536_870_912),
            ("2 GiB", 2_147_483_648),
            ("10Gi", 10_737_418_240),
            ("5GB", 5_000_000_000),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "1.5GiB",
            "-1",
            "+1",
            "1mib",
            "1 Mi B",
            "16777216TiB",
            "99999999999999999999",
        ] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("250ms", 250),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "10",
            "s",
            "1h30",
            "-1s",
            "1w",
            "1.5h",
            "999999999999999999999d",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn processors() {
        for (text, milli) in [("2", 2000), ("0.25", 250), ("1.5", 1500), ("1500m", 1500)] {
            assert_eq!(cpus(text), Some(milli), "{text}");
        }
        for text in ["", "1.", ".5", "0.0001", "-1", "1e3", "99999999999"] {
            assert_eq!(cpus(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_shown_size_reads_back(bytes: u64) {
            prop_assert_eq!(size(&show_size(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (size(&text), duration(&text), cpus(&text));
        }
    }
}
