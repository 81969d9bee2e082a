//! HQ's API as the node's proxy gives it to a central function.

use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use ureq::Agent;

use crate::Result;
use crate::environment::variable;

/// A proxy may hold back the answer to a status request until the task has ended.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The proxy, and what the token says about this run.
pub(crate) struct Hub {
    agent: Agent,
    base: String,
    token: String,
    identity: Value,
}

impl Hub {
    pub(crate) fn from_environment() -> Result<Self> {
        let token = variable("CONTAINER_TOKEN")?;
        let base = format!(
            "{}:{}{}",
            variable("HOST")?,
            variable("PORT")?,
            variable("API_PATH")?
        );
        let agent = Agent::config_builder()
            .timeout_global(Some(ANSWER_LIMIT))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .new_agent();
        Ok(Self {
            agent,
            base,
            identity: identity(&token)?,
            token,
        })
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer = self
            .agent
            .get(format!("{}/{path}", self.base))
            .header("Authorization", format!("Bearer {}", self.token))
            .call()
            .map_err(|error| format!("GET {path}: {error}"))?;
        json_of(&format!("GET {path}"), answer)
    }

    /// All pages of a list.
    fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for page in 1.. {
            let mut answer = self.get(&format!("{path}&page={page}"))?;
            match answer.get_mut("data").map(Value::take) {
                Some(Value::Array(data)) => all.extend(data),
                _ => return Err(format!("the answer to {path} is no list").into()),
            }
            if !answer.pointer("/links/next").is_some_and(Value::is_string) {
                break;
            }
        }
        Ok(all)
    }

    /// The organizations of the collaboration.
    pub(crate) fn organizations(&self) -> Result<Vec<u64>> {
        let id = &self.identity["collaboration_id"];
        self.list(&format!("organization?collaboration_id={id}"))?
            .iter()
            .map(|found| Ok(found["id"].as_u64().ok_or("an organization has no id")?))
            .collect()
    }

    /// Create a subtask without arguments and return its id.
    pub(crate) fn create_task(&self, method: &str, organizations: &[u64]) -> Result<u64> {
        let own = &self.identity;
        let arguments = BASE64.encode(b"{}");
        let mut body = json!({
            "name": format!("{method} average"), "description": "", "method": method,
            "action": "federated_compute",
            "image": own["image"], "collaboration_id": own["collaboration_id"],
            "databases": own["databases"], "session_id": own["session_id"],
            "organizations": organizations.iter()
                .map(|id| json!({"id": id, "arguments": arguments})).collect::<Vec<_>>(),
        });
        for key in ["study_id", "store_id"] {
            if own[key].is_u64() {
                body[key] = own[key].clone();
            }
        }
        let answer = self
            .agent
            .post(format!("{}/task", self.base))
            .header("Authorization", format!("Bearer {}", self.token))
            .content_type("application/json")
            .send(body.to_string())
            .map_err(|error| format!("POST task: {error}"))?;
        let task = json_of("POST task", answer)?;
        Ok(task["id"].as_u64().ok_or("the new task has no id")?)
    }

    /// Wait until a task has completed.
    pub(crate) fn wait(&self, task: u64) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = self.get(&format!("task/{task}/status"))?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed") => return Err("the subtask failed at an organization".into()),
                _ => std::thread::sleep(pause),
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    /// The decoded results of a task.
    pub(crate) fn results(&self, task: u64) -> Result<Vec<Value>> {
        self.list(&format!("result?task_id={task}"))?
            .iter()
            .filter_map(|run| run["result"].as_str().filter(|text| !text.is_empty()))
            .map(|text| Ok(serde_json::from_slice(&BASE64.decode(text.as_bytes())?)?))
            .collect()
    }
}

/// The claims of the token. The node has checked it; here it only says who we are.
fn identity(token: &str) -> Result<Value> {
    let claims = token
        .split('.')
        .nth(1)
        .ok_or("the container token is no JWT")?;
    let claims: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(claims.as_bytes())?)?;
    Ok(claims
        .get("sub")
        .cloned()
        .ok_or("the container token has no subject")?)
}

fn json_of(what: &str, mut answer: ureq::http::Response<ureq::Body>) -> Result<Value> {
    let status = answer.status();
    let text = answer
        .body_mut()
        .read_to_string()
        .map_err(|error| format!("{what}: {error}"))?;
    if !status.is_success() {
        return Err(format!("{what}: {status} {text}").into());
    }
    Ok(serde_json::from_str(&text).map_err(|error| format!("{what}: {error}: {text}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_says_who_we_are() {
        let claims = BASE64URL_NOPAD.encode(br#"{"sub": {"collaboration_id": 3}}"#);
        let token = format!("e30.{claims}.signature");
        assert!(identity(&token).is_ok_and(|own| own["collaboration_id"] == 3));
        assert!(identity("nothing").is_err());
        assert!(identity("a.b.c").is_err());
    }
}
