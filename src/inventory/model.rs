//! Models of firmware, and what was found to work with each.
//!
//! Kept in memory as well: they are asked for with every DISCOVER.

use std::collections::BTreeMap;

use dhcp::Style;
use jiff::Timestamp;

use super::{Error, Inventory, Result, Survives, held, now};

/// Models remembered; the one heard of longest ago is forgotten first. Peers
/// can invent more.
const MODELS_MAX: usize = 512;

/// Longest vendor class kept. `PXEClient:Arch:00007:UNDI:003000` has 32.
const CLASS_MAX_CHARS: usize = 48;

/// What firmware of one kind has in common: its kind (option 93), its vendor
/// class (option 60) and the maker of its network card (the first half of the
/// MAC).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ModelKey {
    firmware: String,
    class: String,
    maker: [u8; 3],
}

impl ModelKey {
    /// Of a client; its class is cut to its longest.
    pub(crate) fn new(firmware: String, class: &str, maker: [u8; 3]) -> ModelKey {
        ModelKey {
            firmware,
            class: class.chars().take(CLASS_MAX_CHARS).collect(),
            maker,
        }
    }

    /// As `dhcp::Firmware` is shown.
    pub(crate) fn firmware(&self) -> &str {
        &self.firmware
    }

    /// Option 60.
    pub(crate) fn class(&self) -> &str {
        &self.class
    }

    /// The first half of the MAC.
    pub(crate) fn maker(&self) -> [u8; 3] {
        self.maker
    }
}

/// The server's role in which something worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ServerRole {
    /// The LAN's DHCP server.
    Full,
    /// A ProxyDHCP beside another.
    Proxy,
}

impl ServerRole {
    /// One word, as saved and as the API spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            ServerRole::Full => "full",
            ServerRole::Proxy => "proxy",
        }
    }

    /// The role a word stands for.
    pub(crate) fn of_word(word: &str) -> Option<ServerRole> {
        [ServerRole::Full, ServerRole::Proxy]
            .into_iter()
            .find(|role| role.word() == word)
    }
}

/// A model we have booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// Short, for people.
    pub(crate) number: u64,
    /// Which.
    pub(crate) key: ModelKey,
    /// In which role we booted it.
    pub(crate) role: ServerRole,
    /// The form of the reply that brought it to its loader.
    pub(crate) style: Option<Style>,
    /// The loader that was heard.
    pub(crate) loader: Option<String>,
    /// When it was found out.
    pub(crate) learned: Timestamp,
}

/// What is known of a model beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learned {
    /// The form of the reply.
    pub(crate) style: Option<Style>,
    /// The loader.
    pub(crate) loader: Option<String>,
    /// Changes when an operator has had something forgotten: who climbs begins
    /// anew then.
    pub(crate) resets: u64,
}

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// This form of the reply works.
    Style(Style),
    /// This loader works.
    Loader(String),
}

/// Every model, in memory.
#[derive(Default)]
pub(super) struct Models {
    by_key: BTreeMap<(ModelKey, ServerRole), Model>,
    resets: u64,
}

impl Models {
    pub(super) fn new(saved: Vec<Model>) -> Models {
        let keyed = saved
            .into_iter()
            .map(|model| ((model.key.clone(), model.role), model));
        Models {
            by_key: keyed.collect(),
            resets: 0,
        }
    }
}

/// A style's one word, as saved and as the API spells it.
pub(crate) fn style_word(style: Style) -> &'static str {
    match style {
        Style::Direct => "direct",
        Style::Plain => "plain",
        Style::Binl => "binl",
        Style::ClassOnly => "class-only",
        Style::Menu => "menu",
    }
}

/// The style a word stands for.
pub(crate) fn style_of_word(word: &str) -> Option<Style> {
    [
        Style::Direct,
        Style::Plain,
        Style::Binl,
        Style::ClassOnly,
        Style::Menu,
    ]
    .into_iter()
    .find(|style| style_word(*style) == word)
}

impl Inventory {
    /// Every model that was booted, by number.
    pub(crate) fn models(&self) -> Vec<Model> {
        let mut models: Vec<Model> = held(&self.models).by_key.values().cloned().collect();
        models.sort_by_key(|model| model.number);
        models
    }

    /// What is known of a model.
    pub(crate) fn learned(&self, key: &ModelKey, role: ServerRole) -> Learned {
        let models = held(&self.models);
        let model = models.by_key.get(&(key.clone(), role));
        Learned {
            style: model.and_then(|model| model.style),
            loader: model.and_then(|model| model.loader.clone()),
            resets: models.resets,
        }
    }

    /// Keeps what was found out; `false` where it was known.
    pub(crate) fn learn(&self, key: &ModelKey, role: ServerRole, finding: Finding) -> Result<bool> {
        let mut models = held(&self.models);
        let place = (key.clone(), role);
        let known = models.by_key.get(&place);
        let mut model = match known {
            Some(model) => model.clone(),
            None => Model {
                number: 1 + models.by_key.values().map(|m| m.number).max().unwrap_or(0),
                key: key.clone(),
                role,
                style: None,
                loader: None,
                learned: now(),
            },
        };
        let is_new = match finding {
            Finding::Style(style) => model.style.replace(style) != Some(style),
            Finding::Loader(loader) => {
                model.loader.as_ref() != Some(&loader) && {
                    model.loader = Some(loader);
                    true
                }
            }
        };
        if !is_new {
            return Ok(false);
        }
        model.learned = now();
        let oldest = (known.is_none() && models.by_key.len() >= MODELS_MAX)
            .then(|| models.by_key.values().min_by_key(|model| model.learned))
            .flatten()
            .map(|model| ((model.key.clone(), model.role), model.number));
        // What a peer can cause is not worth a sync.
        self.store.write(Survives::Process, |facts| {
            if let Some((_, number)) = &oldest {
                facts.remove_model(*number)?;
            }
            facts.put_model(&model)
        })?;
        if let Some((place, _)) = oldest {
            models.by_key.remove(&place);
        }
        models.by_key.insert(place, model);
        Ok(true)
    }

    /// Forgets what was found out of one model, or of all. Machines that climb
    /// begin anew.
    pub(crate) fn forget_models(&self, number: Option<u64>) -> Result<Vec<Model>> {
        let mut models = held(&self.models);
        let forgotten: Vec<Model> = models
            .by_key
            .values()
            .filter(|model| number.is_none_or(|number| model.number == number))
            .cloned()
            .collect();
        if let (Some(number), true) = (number, forgotten.is_empty()) {
            return Err(Error::NotFound(format!(
                "there is no model {number}: `diskless model list` shows them"
            )));
        }
        self.store.write(Survives::Power, |facts| {
            forgotten
                .iter()
                .try_for_each(|model| facts.remove_model(model.number))
        })?;
        models
            .by_key
            .retain(|_, model| number.is_some_and(|number| model.number != number));
        models.resets += 1;
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Site;

    fn key(maker: u8) -> ModelKey {
        let class = "PXEClient:Arch:00007:UNDI:003000";
        ModelKey::new("UEFI PXE (x64)".into(), class, [2, 0, maker])
    }

    #[test]
    fn what_was_found_out_survives_a_restart_and_counts_in_its_role_only() {
        let mut site = Site::new();
        let inventory: &Inventory = &site;
        let style = Finding::Style(Style::Binl);
        assert!(
            inventory
                .learn(&key(1), ServerRole::Proxy, style.clone())
                .unwrap()
        );
        assert!(!inventory.learn(&key(1), ServerRole::Proxy, style).unwrap());
        let loader = Finding::Loader("ipxe.efi".into());
        inventory.learn(&key(1), ServerRole::Proxy, loader).unwrap();
        site.restart();
        let inventory: &Inventory = &site;
        let learned = inventory.learned(&key(1), ServerRole::Proxy);
        assert_eq!(learned.style, Some(Style::Binl));
        assert_eq!(learned.loader.as_deref(), Some("ipxe.efi"));
        let full = inventory.learned(&key(1), ServerRole::Full);
        assert_eq!((full.style, full.loader), (None, None));
    }

    #[test]
    fn forgetting_one_leaves_the_others_and_is_noticed() {
        let site = Site::new();
        let inventory: &Inventory = &site;
        for maker in [1, 2] {
            let style = Finding::Style(Style::Menu);
            inventory
                .learn(&key(maker), ServerRole::Full, style)
                .unwrap();
        }
        let before = inventory.learned(&key(2), ServerRole::Full).resets;
        assert_eq!(inventory.forget_models(Some(1)).unwrap().len(), 1);
        assert_eq!(inventory.learned(&key(1), ServerRole::Full).style, None);
        let other = inventory.learned(&key(2), ServerRole::Full);
        assert_eq!(other.style, Some(Style::Menu));
        assert_ne!(other.resets, before);
        assert!(inventory.forget_models(Some(1)).is_err());
        assert_eq!(inventory.forget_models(None).unwrap().len(), 1);
        assert_eq!(inventory.models(), []);
    }

    #[test]
    fn invented_models_push_out_the_oldest_and_nothing_grows() {
        let site = Site::new();
        let inventory: &Inventory = &site;
        let count = MODELS_MAX + 3;
        for n in 0..count {
            let [a, b, ..] = n.to_le_bytes();
            let key = ModelKey::new("BIOS PXE".into(), "PXEClient", [2, b, a]);
            let style = Finding::Style(Style::Direct);
            inventory.learn(&key, ServerRole::Full, style).unwrap();
        }
        let models = inventory.models();
        assert_eq!(models.len(), MODELS_MAX);
        assert_eq!(models.last().unwrap().number, count as u64);
    }
}
