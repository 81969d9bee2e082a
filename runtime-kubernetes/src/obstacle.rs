//! What stands in the way of a pod that has not started, in the contract's words. Pure.

use k8s_openapi::api::core::v1::Pod;
use v6_runtime::{StartFailure, StartFailureCause as Cause};

use crate::pod::PROGRAM;
use crate::translate::{condition, is_deleted, is_running, or, terminated, waiting};
use crate::volumes::OUT;

/// A cause for the words about a container that could not be started.
pub(crate) fn refusal(message: &str) -> Cause {
    let has = |text: &str| message.contains(text);
    if has("exec format error") {
        Cause::ImageUnusable
    } else if has("executable file not found") || has("no such file or directory") {
        Cause::CommandNotFound
    } else if has("permission denied") || has("is a directory") {
        Cause::CommandNotExecutable
    } else if has("no command specified") {
        Cause::CommandNotFound
    } else {
        Cause::Engine
    }
}

/// How long what stands in a pod's way may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It will not change.
    None,
    /// A registry may come back.
    Registry,
    /// A machine may have room.
    Machine,
}

/// What stands in the way of a pod that has not started, if anything does.
pub(crate) fn obstacle(pod: &Pod) -> Option<(StartFailure, Patience)> {
    if is_deleted(pod) || terminated(pod, PROGRAM).is_some() || is_running(pod, PROGRAM) {
        return None;
    }
    if let Some((false, "Unschedulable", message)) = condition(pod, "PodScheduled") {
        // Our own claim was there first, and whoever says so has not heard of it yet.
        let absent = message.contains("persistentvolumeclaim")
            && message.contains("not found")
            && !out_claim(pod).is_some_and(|claim| message.contains(claim));
        let (cause, patience) = if absent {
            (Cause::MountUnusable, Patience::None)
        } else {
            (Cause::Unschedulable, Patience::Machine)
        };
        return Some((StartFailure::new(cause, message), patience));
    }
    waiting(pod).find_map(|(container, reason, message)| {
        let words = if container == PROGRAM {
            or(message, reason)
        } else {
            format!("the helper's image: {}", or(message, reason))
        };
        let (cause, patience) = match reason {
            "InvalidImageName" => (Cause::ImageUnusable, Patience::None),
            "ErrImageNeverPull" => (Cause::ImageNotFound, Patience::None),
            "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => pull_failure(message),
            "ImageInspectError" => (Cause::ImageUnusable, Patience::Registry),
            "CreateContainerConfigError" => config_error(message),
            "CreateContainerError" | "RunContainerError" => (refusal(message), Patience::None),
            _ => return None,
        };
        // The helper's own image is the operator's matter, not the run's.
        let cause = if container == PROGRAM {
            cause
        } else {
            Cause::Engine
        };
        Some((StartFailure::new(cause, words), patience))
    })
}

/// What the machine's words about a failed pull mean.
pub(crate) fn pull_failure(message: &str) -> (Cause, Patience) {
    let lower = message.to_lowercase();
    let has = |text: &str| lower.contains(text);
    if has("no match for platform") || has("does not match the specified platform") {
        return (Cause::ImageUnusable, Patience::None);
    }
    // A registry that hides what it has says both: refused is the one that somebody can change.
    if has("401 unauthorized")
        || has("403 forbidden")
        || has("authorization failed")
        || has("no basic auth credentials")
        || has("denied")
    {
        return (Cause::ImageDenied, Patience::None);
    }
    if has("not found") || has("manifest unknown") || has("name unknown") {
        return (Cause::ImageNotFound, Patience::None);
    }
    (Cause::RegistryUnreachable, Patience::Registry)
}

fn config_error(message: &str) -> (Cause, Patience) {
    let lower = message.to_lowercase();
    if lower.contains("non-root") || lower.contains("non-numeric") {
        return (Cause::Engine, Patience::None);
    }
    if lower.contains("subpath") {
        return (Cause::MountUnusable, Patience::None);
    }
    // Among others a Secret that is to come.
    (Cause::Engine, Patience::Registry)
}

/// The claim that the pod names for outputs.
fn out_claim(pod: &Pod) -> Option<&str> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let out = volumes.iter().find(|volume| volume.name == OUT)?;
    let claim = out.persistent_volume_claim.as_ref()?;
    Some(&claim.claim_name)
}
