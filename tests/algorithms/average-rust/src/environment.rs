//! Environment variables as a vantage6 5 node writes them: base32 with `!` for `=`,
//! but secrets and what the image sets itself as they are.

use data_encoding::BASE32;

/// The decoded value of a variable.
pub(crate) fn variable(name: &str) -> Result<String, String> {
    std::env::var(name)
        .map(|raw| decode(&raw))
        .map_err(|_| format!("the environment has no {name}"))
}

/// A value that is no base32 stands for itself.
fn decode(raw: &str) -> String {
    BASE32
        .decode(raw.replace('!', "=").as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_else(|| raw.to_owned())
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn values_are_decoded_as_vantage6_encodes_them() {
        assert_eq!(decode("MFRGG!!!"), "abc");
        assert_eq!(decode("NB2HI4B2F4XXQ!!!"), "http://x");
        assert_eq!(decode(""), "");
        assert_eq!(decode("eyJhbGciOi.JIUzI1NiJ9"), "eyJhbGciOi.JIUzI1NiJ9");
    }
}
