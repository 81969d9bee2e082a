//! Socket.IO protocol 5 packets, as far as HQ and the node speak it: text only, namespace
//! `/tasks`, no acknowledgements (protocol 3).

use serde_json::Value;

/// The only namespace that HQ has for nodes.
pub(super) const NAMESPACE: &str = "/tasks";

/// A packet from HQ.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Packet {
    /// The namespace is joined.
    Connect,
    /// HQ has closed the namespace.
    Disconnect,
    /// HQ refuses the namespace.
    ConnectError(String),
    /// An event with its first argument, null if it has none.
    Event(String, Value),
    /// Another namespace, an acknowledgement, or a binary packet.
    Other,
}

/// Reads what follows Engine.IO's type `4`. `None` is a packet that breaks the protocol.
pub(super) fn read(text: &str) -> Option<Packet> {
    let mut rest = text.get(1..)?;
    let kind = text.as_bytes()[0];
    if !kind.is_ascii_digit() || kind > b'6' {
        return None;
    }
    let mut namespace = "/";
    if rest.starts_with('/') {
        let (name, tail) = rest.split_once(',').unwrap_or((rest, ""));
        (namespace, rest) = (name.split('?').next().unwrap_or(name), tail);
    }
    if namespace != NAMESPACE {
        return Some(Packet::Other);
    }
    match kind {
        b'0' => Some(Packet::Connect),
        b'1' => Some(Packet::Disconnect),
        b'2' => {
            // An id asks for an acknowledgement, which HQ does not.
            let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
            let mut items = serde_json::from_str::<Vec<Value>>(rest).ok()?.into_iter();
            match items.next() {
                Some(Value::String(name)) => {
                    Some(Packet::Event(name, items.next().unwrap_or(Value::Null)))
                }
                _ => None,
            }
        }
        b'4' => Some(Packet::ConnectError(rest.to_owned())),
        _ => Some(Packet::Other),
    }
}

/// The packet that joins the namespace.
pub(super) fn connect() -> String {
    format!("0{NAMESPACE},{{}}")
}

/// The packet of an event, with its argument unless that is null.
pub(super) fn event(name: &str, argument: &Value) -> String {
    let list = match argument {
        Value::Null => serde_json::json!([name]),
        argument => serde_json::json!([name, argument]),
    };
    format!("2{NAMESPACE},{list}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn reads_what_was_recorded() {
        for (text, want) in [
            (r#"0/tasks,{"sid":"hrt3"}"#, Packet::Connect),
            (
                r#"2/tasks,["sync"]"#,
                Packet::Event("sync".to_owned(), Value::Null),
            ),
            (
                r#"2/tasks,["new_task_update",{"id":2,"parent_id":null}]"#,
                Packet::Event(
                    "new_task_update".to_owned(),
                    json!({"id": 2, "parent_id": null}),
                ),
            ),
            (
                r#"2/tasks,17["x","y"]"#,
                Packet::Event("x".to_owned(), json!("y")),
            ),
            ("1/tasks,", Packet::Disconnect),
            ("1/tasks", Packet::Disconnect),
            (
                r#"4/tasks,{"message":"no"}"#,
                Packet::ConnectError(r#"{"message":"no"}"#.to_owned()),
            ),
            (r#"0{"sid":"x"}"#, Packet::Other),
            (r#"2/admin,["x"]"#, Packet::Other),
            ("3/tasks,1[]", Packet::Other),
        ] {
            assert_eq!(read(text), Some(want), "{text}");
        }
        for broken in [
            "",
            "x",
            "9/tasks,",
            "2/tasks,",
            "2/tasks,{}",
            "2/tasks,[]",
            "2/tasks,[1]",
            "é",
        ] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }

    #[test]
    fn writes_what_was_recorded() {
        assert_eq!(connect(), "0/tasks,{}");
        assert_eq!(event("ping", &Value::Null), r#"2/tasks,["ping"]"#);
        assert_eq!(event("x", &json!({"a": 1})), r#"2/tasks,["x",{"a":1}]"#);
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = read(&text);
        }
    }
}
