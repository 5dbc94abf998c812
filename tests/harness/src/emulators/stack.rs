//! A stack in moto, made and read by Python's SDK.
//!
//! Writes only into the emulator.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Moto, world::script};

/// A stack. It outlives this value: moto keeps it until it is deleted or reset.
#[derive(Clone, Debug)]
pub struct Stack {
    endpoint: String,
    name: String,
}

impl Stack {
    /// One that is there, made by whom ever.
    #[must_use]
    pub fn named(moto: &Moto, name: &str) -> Self {
        Self { endpoint: moto.url(), name: name.to_owned() }
    }

    /// Makes one of a template, as it is in its file, and returns what [`Stack::facts`] would.
    ///
    /// # Errors
    /// Where moto refuses it.
    pub fn create(&self, template: &Path, parameters: &BTreeMap<String, String>) -> Result<Value> {
        let folder = tempfile::tempdir().context("create a temporary folder")?;
        let file = folder.path().join("parameters.json");
        std::fs::write(&file, json!(parameters).to_string()).context("write the parameters")?;
        self.run("create", &[&template.display().to_string(), &file.display().to_string()])
    }

    /// Signals a resource of it, as an instance does.
    ///
    /// # Errors
    /// Where there is no such resource, or it waits for no signal.
    pub fn signal(&self, resource: &str, unique: &str, status: &str) -> Result<Value> {
        self.run("signal", &[resource, unique, status])
    }

    /// What is true of it now. Members: `stack`, its id; `status`; `outputs`; `resources`, the types of what was made by the
    /// names in the template; `signals` in order, each with `resource` and `reason`; and `room`, where there is a resource of
    /// that name: the instance's `user_data` as text, its `volumes` in the order of their devices with `id`, `device`,
    /// `snapshot` and `gib`, its `private_ip`, `groups`, `profile`, `metadata_options`, `tags`.
    ///
    /// # Errors
    /// Where there is no such stack.
    pub fn facts(&self) -> Result<Value> {
        self.run("show", &[])
    }

    /// Deletes it.
    ///
    /// # Errors
    /// Where moto can not delete all of it.
    pub fn delete(&self) -> Result<Value> {
        self.run("delete", &[])
    }

    fn run(&self, operation: &str, more: &[&str]) -> Result<Value> {
        let words = [self.endpoint.as_str(), operation, &self.name];
        let words: Vec<_> = words.iter().chain(more).map(|word| (*word).to_owned()).collect();
        script("stack.py", &words).with_context(|| format!("{operation} the stack {}", self.name))
    }
}
