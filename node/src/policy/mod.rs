//! Who may run which image here: V6's policies (`policies:` in the configuration), as
//! pure decisions. What they need to know about the outside, the caller looks up.

mod pattern;

use v6_runtime::{Digest, ImageRef, ResolvedImage};

pub use pattern::{ImagePattern, PatternError, TextPattern};

/// The operator's policies. An empty list restricts nothing.
#[derive(Clone, Debug)]
pub struct Policies {
    /// Images that may run.
    pub allowed_algorithms: Vec<ImagePattern>,
    /// Algorithm stores whose algorithms may run.
    pub allowed_stores: Vec<TextPattern>,
    /// One of the two lists above is enough (`allow_either_whitelist_or_store`).
    pub either: bool,
    /// Ids of users at HQ whose tasks may run.
    pub allowed_users: Vec<i64>,
    /// Organizations whose tasks may run, each by its id or its exact name.
    pub allowed_organizations: Vec<String>,
    /// Ask the registry for each run (`require_algorithm_pull`).
    pub require_pull: bool,
}

impl Default for Policies {
    /// V6's default: everything may run.
    fn default() -> Self {
        Self {
            allowed_algorithms: Vec::new(),
            allowed_stores: Vec::new(),
            either: false,
            allowed_users: Vec::new(),
            allowed_organizations: Vec::new(),
            require_pull: true,
        }
    }
}

/// Who sent a task.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender<'a> {
    /// The user's id; absent when HQ names none. For a subtask, the original user.
    pub user: Option<i64>,
    /// The organization's id. For a subtask, that of the central task's node.
    pub organization: Option<i64>,
    /// The organization's name; only needed if [`Policies::needs_organization_name`].
    pub organization_name: Option<&'a str>,
}

/// The store that a task names, and what that store itself said.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// Its address at HQ, without the path of its API.
    pub url: &'a str,
    /// Whether the store, asked by the node, knows the image as an approved algorithm.
    /// HQ's word alone proves nothing.
    pub confirms: bool,
}

/// A decision, with the reason in words for the log and for the researcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The run may start.
    Allowed(String),
    /// It may not.
    Denied(String),
}

impl Decision {
    /// Whether the run may start.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allowed(reason) | Self::Denied(reason) => reason,
        }
    }
}

impl Policies {
    /// What the operator has to be warned of, at the start and in `check`.
    pub fn warnings(&self) -> Vec<String> {
        let (images, stores) = (
            !self.allowed_algorithms.is_empty(),
            !self.allowed_stores.is_empty(),
        );
        let mut warnings = Vec::new();
        if !images && !stores {
            warnings.push(
                "every image may run on this node; list the ones you trust in allowed_algorithms"
                    .to_owned(),
            );
        } else if self.either && images != stores {
            let missing = if images {
                "allowed_algorithm_stores"
            } else {
                "allowed_algorithms"
            };
            warnings.push(format!(
                "every image may run on this node, since allow_either_whitelist_or_store is on and {missing} is not set"
            ));
        }
        warnings
    }

    /// Whether [`Self::decide_sender`] needs the organization's name.
    pub fn needs_organization_name(&self) -> bool {
        self.allowed_organizations
            .iter()
            .any(|entry| entry.parse::<i64>().is_err())
    }

    /// Whether [`Self::decide_image`] needs the task's store.
    pub fn needs_store(&self) -> bool {
        !self.allowed_stores.is_empty()
    }

    /// Whether the operator lists the algorithm store with this address at HQ, so that it may be
    /// asked, and see the node's token.
    pub fn lists_store(&self, url: &str) -> bool {
        let bare = url.trim_end_matches('/');
        self.allowed_stores.iter().any(|entry| {
            entry.matches(bare)
                || entry.matches(url)
                || entry.as_str().trim_end_matches('/') == bare
        })
    }

    /// May this sender run anything here? Can be asked before the image is resolved.
    pub fn decide_sender(&self, sender: Sender<'_>) -> Decision {
        if self.allowed_users.is_empty() && self.allowed_organizations.is_empty() {
            return Decision::Allowed("every user and organization may run tasks here".to_owned());
        }
        if let Some(user) = sender.user.filter(|user| self.allowed_users.contains(user)) {
            return Decision::Allowed(format!("user {user} is in allowed_users"));
        }
        let id = sender.organization.map(|id| id.to_string());
        let listed = self.allowed_organizations.iter().find(|entry| {
            Some(entry.as_str()) == id.as_deref()
                || Some(entry.as_str()) == sender.organization_name
        });
        match listed {
            Some(entry) => Decision::Allowed(format!(
                "organization \"{entry}\" is in allowed_organizations"
            )),
            None => Decision::Denied(format!(
                "this node does not run tasks of {} of {}",
                sender
                    .user
                    .map_or("an unnamed user".to_owned(), |user| format!("user {user}")),
                id.map_or("an unnamed organization".to_owned(), |id| format!(
                    "organization {id}"
                )),
            )),
        }
    }

    /// The entries whose tags have to be resolved before [`Self::decide_image`] can tell
    /// about `image`; mostly none.
    pub fn entries_to_resolve<'a>(
        &'a self,
        image: &'a ImageRef,
    ) -> impl Iterator<Item = &'a ImageRef> {
        self.allowed_algorithms
            .iter()
            .filter_map(|entry| entry.to_resolve(image))
    }

    /// May this image run here? `written` is the image as HQ names it, `resolved` what
    /// will be run, and `digest_of` knows the entries of [`Self::entries_to_resolve`];
    /// an entry that could not be resolved allows nothing.
    pub fn decide_image(
        &self,
        written: &str,
        resolved: &ResolvedImage,
        store: Option<Store<'_>>,
        digest_of: impl Fn(&ImageRef) -> Option<Digest>,
    ) -> Decision {
        let by_image = self.image_entry(written, resolved, digest_of);
        let by_store = self.store_entry(store);
        match (by_image, by_store, self.either) {
            (Ok(image), _, true) => Decision::Allowed(image),
            (_, Ok(store), true) => Decision::Allowed(store),
            (Err(image), Err(store), true) => Decision::Denied(format!("{image}, and {store}")),
            (Ok(image), Ok(store), false) => Decision::Allowed(format!("{image}; {store}")),
            (Err(denied), _, false) | (_, Err(denied), false) => Decision::Denied(denied),
        }
    }

    fn image_entry(
        &self,
        written: &str,
        resolved: &ResolvedImage,
        digest_of: impl Fn(&ImageRef) -> Option<Digest>,
    ) -> Result<String, String> {
        if self.allowed_algorithms.is_empty() {
            return Ok("allowed_algorithms is not set".to_owned());
        }
        match self
            .allowed_algorithms
            .iter()
            .find(|entry| entry.matches(written, resolved, &digest_of))
        {
            Some(entry) => Ok(format!(
                "the image matches \"{}\" of allowed_algorithms",
                entry.as_str()
            )),
            None => Err(format!("this node does not allow the image {written}")),
        }
    }

    fn store_entry(&self, store: Option<Store<'_>>) -> Result<String, String> {
        if self.allowed_stores.is_empty() {
            return Ok("allowed_algorithm_stores is not set".to_owned());
        }
        let Some(store) = store else {
            return Err("the task names no algorithm store, and this node asks for one".to_owned());
        };
        let url = store.url.trim_end_matches('/');
        if !self.lists_store(store.url) {
            Err(format!(
                "this node does not allow the algorithm store {url}"
            ))
        } else if !store.confirms {
            Err(format!(
                "the algorithm store {url} does not confirm the image as approved"
            ))
        } else {
            Ok(format!(
                "the algorithm store {url} is in allowed_algorithm_stores and confirms the image"
            ))
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use v6_runtime::ImageIdentity;

    use super::*;

    const IMAGE: &str = "reg.io/a:1";

    fn decide(policies: &Policies, store: Option<Store<'_>>) -> Decision {
        let digest = Digest::new(format!("sha256:{}", "a".repeat(64))).unwrap();
        let identity = ImageIdentity::Manifest(digest);
        let resolved = ResolvedImage::new(ImageRef::parse(IMAGE).unwrap(), identity, "linux/amd64");
        policies.decide_image(IMAGE, &resolved, store, |_| None)
    }

    fn policies(image: Option<&str>, store: Option<&str>, either: bool) -> Policies {
        Policies {
            allowed_algorithms: image
                .map(|text| ImagePattern::parse(text).unwrap())
                .into_iter()
                .collect(),
            allowed_stores: store
                .map(|text| TextPattern::parse(text).unwrap())
                .into_iter()
                .collect(),
            either,
            ..Policies::default()
        }
    }

    #[test]
    fn lists_of_images_and_stores_combine_as_in_v6() {
        let good = Some(Store {
            url: "https://s.io/",
            confirms: true,
        });
        let claimed = Some(Store {
            url: "https://s.io",
            confirms: false,
        });
        let (yes, no) = (Some(IMAGE), Some("reg.io/other"));
        for (image, store, either, task_store, allowed) in [
            (None, None, false, None, true),
            (yes, None, false, None, true),
            (no, None, false, None, false),
            (None, Some("https://s.io"), false, good, true),
            (None, Some("https://s.io"), false, claimed, false),
            (None, Some("https://s.io"), false, None, false),
            (None, Some("https://t.io"), false, good, false),
            (yes, Some("https://s.io"), false, good, true),
            (yes, Some("https://s.io"), false, None, false),
            (no, Some("https://s.io"), false, good, false),
            (no, Some(r"^https://[a-z]\.io"), true, good, true),
            (yes, Some("https://s.io"), true, None, true),
            (no, Some("https://s.io"), true, None, false),
            // V6: with OR, an unset list makes everything allowed.
            (no, None, true, None, true),
        ] {
            let decision = decide(&policies(image, store, either), task_store);
            assert_eq!(
                decision.is_allowed(),
                allowed,
                "{image:?} {store:?} {either} {task_store:?}: {decision:?}"
            );
        }
    }

    #[test]
    fn senders() {
        let mut policies = Policies::default();
        let sender = Sender {
            user: Some(7),
            organization: Some(3),
            organization_name: Some("umc"),
        };
        assert!(policies.decide_sender(Sender::default()).is_allowed());
        policies.allowed_users = vec![8];
        let denied = policies.decide_sender(sender);
        assert_eq!(
            denied.reason(),
            "this node does not run tasks of user 7 of organization 3"
        );
        assert!(!policies.decide_sender(Sender::default()).is_allowed());
        policies.allowed_organizations = vec!["3".into()];
        assert!(!policies.needs_organization_name());
        assert!(policies.decide_sender(sender).is_allowed());
        policies.allowed_organizations = vec!["UMC".into()];
        assert!(!policies.decide_sender(sender).is_allowed());
        policies.allowed_organizations = vec!["umc".into()];
        assert!(policies.needs_organization_name());
        assert!(policies.decide_sender(sender).is_allowed());
    }

    #[test]
    fn open_doors_are_warned_of() {
        assert_eq!(policies(None, None, false).warnings().len(), 1);
        assert_eq!(policies(Some(IMAGE), None, true).warnings().len(), 1);
        assert!(policies(Some(IMAGE), None, false).warnings().is_empty());
        assert!(
            policies(Some(IMAGE), Some("https://s.io"), true)
                .warnings()
                .is_empty()
        );
    }
}
