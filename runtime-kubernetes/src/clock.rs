//! Whether this machine and the API server have the same time.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;

use crate::api::Cluster;
use crate::error::Result;

/// The server tells whole seconds, and the answer travels.
const HARMLESS: Duration = Duration::from_secs(5);

/// What an operator should know of the two.
pub(crate) async fn compare(cluster: &Cluster) -> Result<Option<String>> {
    let asked = SystemTime::now();
    let date = cluster.date().await?;
    Ok(date.and_then(|date| differ(&date, asked, SystemTime::now())))
}

/// Of the server's date, which it has said between two of our times.
fn differ(date: &str, asked: SystemTime, answered: SystemTime) -> Option<String> {
    let said = DateTimeParser::new().parse_timestamp(date).ok()?;
    let said = said.as_second();
    let second = |time: SystemTime| Timestamp::try_from(time).map(|time| time.as_second());
    let (asked, answered) = (second(asked).ok()?, second(answered).ok()?);
    let (by, how) = match said {
        said if said > answered => (said.abs_diff(answered), "behind"),
        said => (asked.saturating_sub(said).max(0).unsigned_abs(), "ahead of"),
    };
    (by > HARMLESS.as_secs()).then(|| {
        format!(
            "this machine's clock is {by} s {how} the API server's: deadlines and the times of logs are \
             wrong by that, and logins may not be believed"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_harmless_is_not_told() {
        let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let of = |asked, answered| differ("Thu, 01 Jan 1970 00:16:40 GMT", at(asked), at(answered));
        for (asked, answered) in [(1000, 1000), (995, 996), (1005, 1007), (900, 1100)] {
            assert_eq!(of(asked, answered), None, "{asked} {answered}");
        }
        let behind = of(880, 900).expect("behind");
        assert!(behind.contains("is 100 s behind the"), "{behind}");
        let ahead = of(1100, 1120).expect("ahead");
        assert!(ahead.contains("is 100 s ahead of the"), "{ahead}");
        assert_eq!(differ("yesterday", at(0), at(0)), None);
    }
}
