//! The function's log: one JSON object a line on standard output, with whatever is known of the case in each.
//!
//! Purpose: what happens in an invocation can be found by case, instance, run, step or request. Touches standard output. Never
//! writes a task's token.

use std::{
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use cleanroom_contract::printable;
use cleanroom_controller::{case::Clock as _, machine::SystemClock, progress::Event};
use serde_json::{Map, Value, json};

use super::metrics::{self, Metric};

/// How loud a line is (the words that Lambda filters by).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// What is known of an invocation.
#[derive(Clone, Debug, Default)]
struct Known {
    fields: Map<String, Value>,
    secret: Option<String>,
}

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    function: &'static str,
    stack: Arc<str>,
    known: Arc<Mutex<Known>>,
}

/// The longest name that is taken from an event into each line.
const LONGEST: usize = 200;

impl Log {
    pub(crate) fn new(function: &'static str, stack: &str) -> Self {
        Self { function, stack: stack.into(), known: Arc::default() }
    }

    /// Begins an invocation: what its event names is in every line from now on.
    pub(crate) fn begin(&self, request: &str, event: &Value) {
        let mut fields = Map::new();
        let mut take = |name: &str, value: &Value| {
            if let Some(text) = value.as_str() {
                let text: String = text.chars().take(LONGEST).collect();
                fields.insert(name.to_owned(), printable(&text).into());
            }
        };
        take("request", &request.into());
        for name in ["case", "instance", "run", "step"] {
            take(name, &event[name]);
        }
        // The claim is what counts, whatever the execution is named.
        take("case", &event["open"]["case"]);
        let secret = event["token"].as_str().filter(|token| !token.is_empty()).map(str::to_owned);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Known { fields, secret };
    }

    /// Writes a line.
    pub(crate) fn line(&self, level: Level, message: &str, more: Value) {
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), SystemClock.now().to_string().into());
        line.insert("level".to_owned(), level.word().into());
        line.insert("message".to_owned(), message.into());
        self.write(line, more);
    }

    /// Writes what a response tells.
    pub(crate) fn event(&self, event: &Event) {
        let Ok(told) = serde_json::to_value(event) else { return };
        let kind = told["type"].as_str().unwrap_or_default();
        if kind == "case" {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.fields.insert("case".to_owned(), told["case"].clone());
        }
        let level = match kind {
            "open" => Level::Error,
            "shortfall" | "unlogged" => Level::Warn,
            _ if !told["error"].is_null() => Level::Warn,
            _ => Level::Info,
        };
        self.line(level, kind, json!({ "instance": told["instance"], "event": told }));
        if kind == "open" {
            self.metrics(&[metrics::open()]);
        }
    }

    /// Writes numbers, where there are any.
    pub(crate) fn metrics(&self, metrics: &[Metric]) {
        if !metrics.is_empty() {
            let line = metrics::embedded(&self.stack, SystemClock.now(), metrics);
            self.write(line, Value::Null);
        }
    }

    /// A panic becomes a line as well, whichever task or thread it is in.
    pub(crate) fn take_panics(&self) {
        let log = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.payload_as_str().unwrap_or("no text");
            let place = panic.location().map(ToString::to_string);
            log.line(Level::Error, "panicked", json!({ "why": printable(text), "at": place }));
        }));
    }

    fn write(&self, mut line: Map<String, Value>, more: Value) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        line.insert("function".to_owned(), self.function.into());
        line.extend(known.fields);
        if let Value::Object(more) = more {
            line.extend(more);
        }
        let mut text = Value::Object(line).to_string();
        if let Some(secret) = &known.secret {
            text = text.replace(secret.as_str(), "[task token]");
        }
        text.push('\n');
        // Where standard output is gone there is nobody to tell.
        let mut out = io::stdout().lock();
        drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    }
}
