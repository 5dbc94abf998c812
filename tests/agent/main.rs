//! The agent's integration tests: the real binary on real evidence, one module a theme.

mod bundle;
mod cli;
mod evidence;
mod links;
mod names;
mod processes;
mod reading;
mod regressions;
mod room;
mod rules;
mod support;
mod vm;
