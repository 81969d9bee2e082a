//! Each quirk, on what real engines said: where one says otherwise than Docker run by root, the quirk
//! is there, and nowhere else.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::collections::BTreeSet;

use bollard::models::{ContainerStateStatusEnum, Mount};
use serde_json::{Value, json};

use crate::about::Kind;
use crate::error::Error;
use crate::quirks::{self, Quirks, as_words};
use crate::recorded::Engine;

/// What an engine was seen to do, by what it says of itself.
fn each(check: impl Fn(&str, &Quirks, &Value)) {
    let engines = Engine::all();
    assert!(engines.len() >= 3, "recordings are missing");
    for engine in engines {
        let quirks = engine.quirks();
        check(&engine.name, &quirks, &engine.answers());
    }
}

fn names(list: &Value) -> Vec<&str> {
    let all = list.as_array().unwrap().iter();
    all.map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn which_engine_it_is() {
    for engine in Engine::all() {
        let (about, quirks) = (engine.about(), engine.quirks());
        let is_podman = engine.name.starts_with("podman");
        assert_eq!(about.kind == Kind::Podman, is_podman, "{}", engine.name);
        let rootless = engine.name.ends_with("-rootless");
        assert_eq!(quirks.rootless, rootless, "{}", engine.name);
    }
}

#[test]
fn ids_outside() {
    let root = Engine::named("podman-4.3.1").quirks();
    assert_eq!(root.outside(65_532, 65_532), Some((65_532, 65_532)));
    let user = Engine::named("podman-4.3.1-rootless");
    let maps = &user.file("about.json").unwrap()["libpod"]["host"]["idMappings"];
    let first = |map: &str| maps[map][1]["host_id"].as_u64().unwrap();
    let quirks = user.quirks();
    let outside = (first("uidmap") + 65_531, first("gidmap") + 65_531);
    assert_eq!(quirks.outside(65_532, 65_532), Some(outside));
    assert_eq!(quirks.outside(65_537, 1), None);
    assert_eq!(quirks.outside(1, 65_537), None);
    let untold = Engine::named("docker-20.10.24-rootless").quirks();
    assert!(untold.outside(65_532, 999).is_some());
    assert_eq!(untold.outside(999, 1_000_998), None);
    let root = Engine::named("docker-20.10.24").quirks();
    assert_eq!(root.outside(999, 1_000_998), Some((999, 1_000_998)));
}

#[test]
fn a_volume_made_with_its_container() {
    each(|name, quirks, seen| {
        let labels = &seen["labels of a volume made with its container"];
        assert_eq!(*labels == json!({}), quirks.record_made_alone, "{name}");
    });
}

#[test]
fn limits_of_a_process() {
    each(|name, quirks, seen| {
        let seen = &seen["limits of a process"];
        let others = |names: Vec<&str>| names != ["core"];
        assert_eq!(
            others(names(&seen["given"])),
            quirks.limits_by_init,
            "{name}"
        );
    });
}

#[test]
fn limits_of_a_control_group() {
    for engine in Engine::all() {
        let (name, about) = (&engine.name, engine.about());
        if about.kind == Kind::Docker {
            // Run by a user, it refuses nothing, keeps what was asked, and says that it limits nothing.
            continue;
        }
        let seen = &engine.answers()["limits by control group"];
        let kept = |what: &str| seen["given"][what] == seen["asked"][what];
        assert_eq!(Some(kept("Memory")), about.limits.memory, "{name}: memory");
    }
}

#[test]
fn devices() {
    each(|name, quirks, seen| {
        let seen = &seen["devices for a container"];
        let ignored = seen["start"]["status"] == 204;
        assert_eq!(ignored, quirks.device_requests_ignored, "{name}");
    });
}

#[test]
fn a_read_only_root() {
    each(|name, quirks, seen| {
        let seen = names(&seen["writable folders in memory of a read-only root"]);
        assert_eq!(seen, quirks.writable_in_read_only_root, "{name}");
    });
}

#[test]
fn its_id() {
    for engine in Engine::all() {
        let stays = &engine.answers()["its id stays"];
        // That is why none is taken from Podman.
        let is_podman = engine.about().kind == Kind::Podman;
        assert_eq!(*stays == false, is_podman, "{}", engine.name);
    }
}

#[test]
fn states_that_docker_does_not_have() {
    each(|name, quirks, seen| {
        let seen = &seen["states of a container, to its end"];
        let seen: BTreeSet<&str> = [&seen["inspected"], &seen["listed"]]
            .into_iter()
            .flat_map(names)
            .collect();
        let known =
            |state: &&str| serde_json::from_value::<ContainerStateStatusEnum>(json!(state)).is_ok();
        assert_eq!(
            !seen.iter().all(known),
            quirks.other_states,
            "{name}: {seen:?}"
        );
        for state in seen {
            let answer = json!({"State": {"Status": state}}).to_string();
            let read = quirks::container(answer.as_bytes()).unwrap();
            let status = read.state.unwrap().status.unwrap();
            let wanted = match state {
                "running" => ContainerStateStatusEnum::RUNNING,
                "stopping" => ContainerStateStatusEnum::STOPPING,
                "stopped" | "exited" => ContainerStateStatusEnum::EXITED,
                _ => ContainerStateStatusEnum::CREATED,
            };
            assert_eq!(status, wanted, "{name}: {state}");
            let list = json!([{"Id": "a", "State": state}]).to_string();
            let read = quirks::containers(list.as_bytes()).unwrap();
            let found = serde_json::to_value(read[0].state).unwrap();
            assert_eq!(found, json!(wanted), "{name}: {state}");
        }
    });
}

#[test]
fn events_by_their_filters() {
    each(|name, quirks, seen| {
        let seen = &seen["events of a killed container, by filter"];
        // Each change of a run has to come by one of the names that are asked for.
        let come = |filter: &str| names(&seen[filter]);
        let all: Vec<&str> = quirks.events.iter().flat_map(|it| come(it)).collect();
        for wanted in ["start", "die"] {
            assert!(all.contains(&wanted), "{name}: {wanted} of {all:?}");
        }
        let removed = all.contains(&"destroy") || all.contains(&"remove");
        assert!(removed, "{name}: {all:?}");
        for asked in quirks.events.iter().filter(|it| **it != "oom") {
            assert!(!come(asked).is_empty(), "{name}: {asked} is never told");
        }
    });
}

#[test]
fn a_working_folder_in_memory() {
    each(|name, quirks, seen| {
        let mode = &seen["mode of a working folder in memory, asked to be 1777"];
        assert_eq!(*mode != "1777", quirks.working_folder_keeps_mode, "{name}");
    });
}

#[test]
fn a_path_that_is_missing() {
    each(|name, quirks, seen| {
        let made = seen["mounting a path that is missing"]["is_made"] == true;
        assert_eq!(made, quirks.makes_missing_paths, "{name}");
    });
}

#[test]
fn mounts_with_awkward_paths() {
    each(|name, quirks, seen| {
        let answer = &seen["mounting at a path with a comma"];
        let taken_as_is = answer["at"] == "/srv,ro";
        assert_eq!(!taken_as_is, quirks.mounts_are_words, "{name}: {answer}");
    });
}

#[test]
fn words_of_a_mount() {
    let mount = |source: &str, target: &str| Mount {
        source: Some(source.to_owned()),
        target: Some(target.to_owned()),
        ..Mount::default()
    };
    let same = mount("/a b", "/c $d:e='f'");
    assert_eq!(as_words(same.clone()), same);
    assert_eq!(
        as_words(mount("/a", "/b,ro")),
        mount("/a", r#"/v6,"dst=/b,ro""#)
    );
    assert_eq!(
        as_words(mount("/a,\"b", "/c")),
        mount("/", r#"/v6,"src=/a,""b","dst=/c""#)
    );
}

#[test]
fn the_end_of_a_followed_log() {
    each(|name, quirks, seen| {
        let seen = &seen["bytes of an ended log of 2 MiB, followed or not"];
        let whole = seen["followed"] == seen["not followed"];
        // Whether it loses some, and how many, is chance: what keeps all is the claim.
        assert!(whole || quirks.follow_loses_end, "{name}: {seen}");
    });
}

#[test]
fn asking_a_registry() {
    each(|name, quirks, seen| {
        // Nobody listens where it is asked for: who has the call says that.
        let answer = &seen["a registry asked for an image"];
        let no_such_call = answer["status"] == 404;
        assert_eq!(no_such_call, quirks.asks_by_list, "{name}: {answer}");
    });
}

#[test]
fn what_is_removed_during_the_call() {
    for engine in Engine::all() {
        let seen = engine.file("just-gone.json").unwrap();
        for answer in seen.as_array().unwrap() {
            let status = u16::try_from(answer["status"].as_u64().unwrap()).unwrap();
            let error = Error::Engine {
                step: "looking at a container",
                source: bollard::errors::Error::DockerResponseServerError {
                    status_code: status,
                    message: answer["message"].as_str().unwrap().to_owned(),
                },
            };
            let gone = crate::error::found::<()>(Err(error));
            assert!(matches!(gone, Ok(None)), "{}: {answer}", engine.name);
        }
    }
}

#[test]
fn a_container_that_runs_no_more() {
    let is = |status_code, message: &str| {
        let message = message.to_owned();
        quirks::is_not_running(&Error::Engine {
            step: "stopping a container",
            source: bollard::errors::Error::DockerResponseServerError {
                status_code,
                message,
            },
        })
    };
    let podman =
        "can only kill running containers. 7c0f is in state stopped: container state improper";
    assert!(is(500, podman));
    assert!(is(500, "container state improper: stopped"));
    assert!(is(
        500,
        "Cannot kill container: 7c0f: Container 7c0f is not running"
    ));
    assert!(is(409, "Container 7c0f is not running"));
    assert!(!is(500, "cannot kill: permission denied"));
    assert!(!is(404, "No such container: 7c0f is not running"));
}

#[test]
fn a_volume_that_somebody_else_makes() {
    let is = |status_code, message: &str| {
        let message = message.to_owned();
        quirks::is_made_already(&Error::Engine {
            step: "making a volume",
            source: bollard::errors::Error::DockerResponseServerError {
                status_code,
                message,
            },
        })
    };
    let podman = "adding volume to state: name a.b.cancelled is in use: volume already exists";
    assert!(is(500, podman));
    assert!(!is(409, podman));
    assert!(!is(500, "volume already exists: and it cannot be read"));
}

#[test]
fn names_of_the_machine() {
    each(|name, quirks, seen| {
        let seen = names(&seen["names in /etc/hosts without a network"]);
        let more = seen.iter().any(|name| name.ends_with(".internal"));
        assert_eq!(more, quirks.hosts_has_more, "{name}: {seen:?}");
    });
}

#[test]
fn a_refusal_in_a_list_of_errors() {
    use bollard::errors::Error::DockerResponseServerError as Answered;
    let answered = |message: &str| Answered {
        status_code: 400,
        message: message.to_owned(),
    };
    let words = |message| crate::error::words(&quirks::list_refusal(answered(message)));
    let many = r#"{"Id":"","errors":["manifest unknown: manifest unknown"]}"#;
    assert_eq!(words(many), "manifest unknown: manifest unknown");
    assert_eq!(words("no such image"), "no such image");
}

/// Seen once, with two processes that fetched one image at the same time on a busy machine.
#[test]
fn an_image_that_is_being_stored() {
    let refused = |status_code, message: &str| bollard::errors::Error::DockerResponseServerError {
        status_code,
        message: message.to_owned(),
    };
    let words = "failed to convert ImageData to ImageInspect '127.0.0.1:23453/v6-conformance/probe@sha256:c871': \
                 locating item named \"manifest\" for image with ID \"aa4d\" (consider removing the image to \
                 resolve the issue): file does not exist";
    assert!(quirks::is_half_stored(&refused(500, words)));
    assert!(!quirks::is_half_stored(&refused(404, "no such image")));
    assert!(!quirks::is_half_stored(&refused(
        500,
        "no space left on device"
    )));
}

#[test]
fn files_that_are_being_mounted_are_told_apart() {
    let words = "mounting storage for container 1de5579e: lstat /var/lib/containers/storage/overlay/2081/merged: \
                 no such file or directory";
    let refused = |status_code, message: &str| bollard::errors::Error::DockerResponseServerError {
        status_code,
        message: message.to_owned(),
    };
    assert!(quirks::is_half_mounted(&refused(500, words)));
    assert!(!quirks::is_half_mounted(&refused(
        404,
        "no such file or directory"
    )));
}
