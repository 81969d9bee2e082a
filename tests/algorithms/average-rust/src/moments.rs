//! Count, mean and sum of squared deviations, of one part and of several together.

use serde_json::{Map, Value, json};

/// The moments of some numbers. The sum of squared deviations from the mean loses no
/// digits when the mean is large, as a sum of squares would.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    count: u64,
    mean: f64,
    m2: f64,
}

/// A sum with the rounding errors carried along (Neumaier 1974).
fn sum(numbers: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0_f64);
    for x in numbers {
        let next = sum + x;
        lost += if sum.abs() >= x.abs() {
            (sum - next) + x
        } else {
            (x - next) + sum
        };
        sum = next;
    }
    // With an infinity in it, what was lost is not a number.
    if lost.is_finite() { sum + lost } else { sum }
}

impl Moments {
    pub(crate) fn of(numbers: &[f64]) -> Self {
        if numbers.is_empty() {
            return Self::default();
        }
        let mean = sum(numbers.iter().copied()) / numbers.len() as f64;
        let m2 = sum(numbers.iter().map(|x| (x - mean) * (x - mean)));
        Self {
            count: numbers.len() as u64,
            mean,
            m2,
        }
    }

    /// Both together (Chan, Golub, LeVeque 1983).
    fn and(self, other: Self) -> Self {
        if self.count == 0 || other.count == 0 {
            return if self.count == 0 { other } else { self };
        }
        let count = self.count + other.count;
        let (n, m) = (self.count as f64, other.count as f64);
        let delta = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + delta * m / count as f64,
            m2: self.m2 + other.m2 + delta * delta * n * m / count as f64,
        }
    }

    pub(crate) fn to_json(self) -> Value {
        json!({"count": self.count, "mean": self.mean, "m2": self.m2})
    }

    fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            count: value.get("count")?.as_u64()?,
            mean: value.get("mean")?.as_f64()?,
            m2: value.get("m2")?.as_f64()?,
        })
    }

    /// What the user gets: with the sample's standard deviation (n - 1).
    fn answer(self) -> Value {
        let mean = (self.count > 0).then_some(self.mean);
        let std = (self.count > 1).then(|| (self.m2 / (self.count - 1) as f64).sqrt());
        json!({"mean": mean, "std": std, "count": self.count})
    }
}

/// Columns that are numeric in every part. A part's `null` says that its column is not.
pub(crate) fn combine(parts: &[&Map<String, Value>]) -> Result<Map<String, Value>, String> {
    let mut answer = Map::new();
    for name in parts.first().into_iter().flat_map(|part| part.keys()) {
        let mut all = Moments::default();
        let mut numeric = true;
        for part in parts {
            match part.get(name) {
                None | Some(Value::Null) => numeric = false,
                Some(value) => {
                    let one = Moments::from_json(value)
                        .ok_or_else(|| format!("the moments of {name} are not understood"))?;
                    all = all.and(one);
                }
            }
        }
        if numeric {
            answer.insert(name.clone(), all.answer());
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_together_equal_the_whole() {
        let numbers: Vec<f64> = (0..1000).map(|i| 1e9 + f64::from(i % 17) / 7.0).collect();
        let whole = Moments::of(&numbers);
        let parts = [
            &numbers[..10],
            &numbers[10..10],
            &numbers[10..700],
            &numbers[700..],
        ];
        let together = parts
            .into_iter()
            .map(Moments::of)
            .fold(Moments::default(), Moments::and);
        assert_eq!(together.count, whole.count);
        assert!((together.mean - whole.mean).abs() < 1e-9 * whole.mean);
        assert!((together.m2 - whole.m2).abs() < 1e-6 * whole.m2);
    }

    #[test]
    fn a_column_must_be_numeric_everywhere() {
        let a = json!({"x": {"count": 1, "mean": 2.0, "m2": 0.0}, "y": null, "z": {"count": 0, "mean": 0.0, "m2": 0.0}});
        let b = json!({"x": {"count": 1, "mean": 4.0, "m2": 0.0}, "y": {"count": 1, "mean": 4.0, "m2": 0.0}, "z": {"count": 0, "mean": 0.0, "m2": 0.0}});
        let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
            unreachable!()
        };
        let expected = json!({
            "x": {"mean": 3.0, "std": 2.0_f64.sqrt(), "count": 2},
            "z": {"mean": null, "std": null, "count": 0},
        });
        assert_eq!(combine(&[a, b]).map(Value::from), Ok(expected));
        let bad = json!({"x": {"count": "many"}});
        assert!(bad.as_object().is_some_and(|bad| combine(&[bad]).is_err()));
    }
}
