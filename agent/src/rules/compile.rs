//! Rule texts in, compiled sets out.
//!
//! Purpose: run the yara-x compiler over a set of sources, turn what it says into diagnostics, and build
//! the sets that the routing plans. Touches nothing but memory, and much of that: callers run it in a
//! process of its own. Never reads a file: includes are resolved before, and the compiler's own are off.
//!
//! What yara-x 1.22.1 does with a broken source, and what therefore happens here: its parser skips a
//! declaration that it cannot parse and goes on with the next, and a rule that fails to compile is taken
//! back alone, so `add_source` returning an error leaves every sound rule of that source in. All of them
//! are used. A source that is not UTF-8 is refused as a whole.

use std::collections::{HashMap, HashSet};

use cleanroom_contract::{RuleDiagnostic, RuleFile, printable};
use serde_json::Value;
use yara_x::{Compiler, IgnoredRuleReason, SourceCode};
use yara_x_parser::ast::AST;

use super::{
    RulesError, VARIABLES, cache,
    pack::{FORMAT, Pack, PackHeader, SetInfo},
    routing::{self, Kept, RouteIndex, RuleFacts},
    source::SourceSet,
    syntax::LineIndex,
};

/// Most errors that are kept, and most warnings. One more diagnostic
/// says that there are others.
const MAX_DIAGNOSTICS: usize = 10_000;

/// Longest message kept, in characters.
const MAX_MESSAGE: usize = 1000;

/// Stack for parsing and compiling: both recurse up to yara-x's depth limit (3,000 nested expressions),
/// which does not fit a thread's usual 2 MiB.
const STACK: usize = 256 << 20;

/// Compiles the sources.
///
/// Regular expressions are read in yara-x's relaxed mode, since published packs are written for the
/// YARA that accepts unknown escapes and bare braces. Modules that this program lacks are ignored, and
/// each rule that needs one is reported as not used.
///
/// # Errors
/// The compiled form cannot be serialised, or the compiler's thread died. Broken rules are no errors:
/// they are diagnostics in the pack's header.
pub(crate) fn compile(set: &SourceSet) -> Result<Pack, RulesError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("rule compiler".to_owned()).stack_size(STACK);
        let handle = thread.spawn_scoped(scope, || build_pack(set)).map_err(RulesError::Thread)?;
        handle.join().map_err(|_| RulesError::Compiler("the compiler panicked".to_owned()))?
    })
}

/// Compiles everything once, then what routing leaves for other files.
fn build_pack(set: &SourceSet) -> Result<Pack, RulesError> {
    let mut facts: Vec<Vec<RuleFacts>> = set.sources.iter().map(routing::facts).collect();
    let missing = missing_modules(set);
    let (compiler, mut diagnostics) = add_sources(set, &facts, None, &missing)?;
    diagnostics.splice(..0, set.diagnostics.iter().cloned());
    let all = compiler.build();
    let compiled: HashSet<(&str, &str)> =
        all.iter().map(|rule| (rule.namespace(), rule.identifier())).collect();
    for (source, facts) in set.sources.iter().zip(&mut facts) {
        routing::settle(facts, |name| compiled.contains(&(source.namespace.as_str(), name)));
    }
    let plan = routing::plan(&facts);
    let whole = whole_file_rules(set, &facts);
    let mut header = PackHeader {
        format: FORMAT,
        yara_x: yara_x::VERSION.to_owned(),
        cpu: cache::cpu_identity(),
        variables: VARIABLES.iter().map(|name| (*name).to_owned()).collect(),
        sources: rule_files(set, &facts, &compiled),
        diagnostics: bounded(diagnostics),
        headers: plan.headers.iter().map(|header| super::pack::hex(header)).collect(),
        elf: plan.elf,
        reads_names: set.sources.iter().flat_map(|source| source.text.all()).any(|text| {
            super::syntax::has_identifier(&text.bytes, &["filename", "filepath", "extension"])
        }),
        sets: Vec::new(),
    };
    let mut blobs = Vec::new();
    let mut add = |index: RouteIndex, rules: &yara_x::Rules| -> Result<(), RulesError> {
        let blob = rules.serialize().map_err(|error| RulesError::Serialise(Box::new(error)))?;
        header.sets.push(set_info(index, rules, &whole, blob.len()));
        blobs.push(blob);
        Ok(())
    };
    drop(compiled);
    add(if plan.partial.is_empty() { RouteIndex::Other } else { RouteIndex::Full }, &all)?;
    // One set at a time: the compiled forms are large.
    drop(all);
    for (index, kept) in &plan.partial {
        let (compiler, _) = add_sources(set, &facts, Some(kept), &missing)?;
        add(*index, &compiler.build())?;
    }
    Ok(Pack { header, blobs })
}

/// Gives every source to a new compiler, each in its namespace.
fn add_sources(
    set: &SourceSet,
    facts: &[Vec<RuleFacts>],
    kept: Option<&Kept>,
    missing: &HashSet<String>,
) -> Result<(Compiler<'static>, Vec<RuleDiagnostic>), RulesError> {
    let mut compiler = Compiler::new();
    compiler.relaxed_re_syntax(true).enable_includes(false).max_warnings(MAX_DIAGNOSTICS + 1);
    for name in VARIABLES {
        compiler
            .define_global(name, "")
            .map_err(|error| RulesError::Compiler(error.to_string()))?;
    }
    for module in missing {
        compiler.ignore_module(module);
    }
    let mut diagnostics = Vec::new();
    for (index, source) in set.sources.iter().enumerate() {
        let facts = facts.get(index).map_or(&[][..], Vec::as_slice);
        let kept = kept.and_then(|kept| kept.get(index)).map(Vec::as_slice);
        compiler.new_namespace(&source.namespace);
        let ignored = compiler.ignored_rules().len();
        for (path, bytes) in routing::texts(source, facts, kept) {
            // The first error comes back here, and all of them stay in the compiler.
            let _ = compiler.add_source(SourceCode::from(bytes.as_slice()).with_origin(path));
        }
        if kept.is_none() {
            for (name, reason) in compiler.ignored_rules().skip(ignored) {
                diagnostics.extend(dropped(source, facts, name, &reason));
            }
        }
    }
    if kept.is_none() {
        diagnostics.extend(
            compiler.errors().iter().take(MAX_DIAGNOSTICS + 1).map(|e| diagnostic(e, true)),
        );
        diagnostics.extend(compiler.warnings().iter().filter_map(|warning| match warning {
            // Told by `dropped`, which a comment in the source cannot silence.
            yara_x::warnings::Warning::IgnoredRule(_) => None,
            warning => Some(diagnostic(warning, false)),
        }));
    }
    Ok((compiler, diagnostics))
}

/// A rule that is not used because it needs something that this program lacks.
fn dropped(
    source: &super::source::Source,
    facts: &[RuleFacts],
    name: &str,
    reason: &IgnoredRuleReason<'_>,
) -> Option<RuleDiagnostic> {
    let why = match reason {
        IgnoredRuleReason::IgnoredModule(module) => {
            format!("it needs the module `{module}`, which this program does not have")
        }
        IgnoredRuleReason::IgnoredRule(rule) => format!("it refers to `{rule}`, which is not used"),
        IgnoredRuleReason::CompileError(_) => return None,
    };
    let texts = source.text.all();
    let place = facts.iter().find(|rule| rule.name == name);
    let text = place.and_then(|rule| texts.get(rule.text)).copied().unwrap_or(&source.text);
    let (line, column) = place
        .map_or((1, 1), |rule| LineIndex::new(&text.bytes).position(&text.bytes, rule.span.start));
    let message = printable(&format!("rule `{name}` is not used: {why}"));
    Some(RuleDiagnostic { path: text.path.clone(), line, column, message, error: true })
}

/// A diagnostic from the compiler's own report, whose JSON form holds title, code, place and labels.
fn diagnostic<T: serde::Serialize>(report: &T, error: bool) -> RuleDiagnostic {
    let report = serde_json::to_value(report).unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let labels = report["labels"].as_array().map_or(&[][..], Vec::as_slice);
    let level = if error { "error" } else { "warning" };
    let label = labels.iter().find(|label| label["level"] == level).or(labels.first());
    let label = label.unwrap_or(&Value::Null);
    let number = |key: &str| report[key].as_u64().or(label[key].as_u64()).unwrap_or(1);
    let mut message = text(&report, "title");
    for part in [text(label, "text"), text(&report["footers"][0], "text")] {
        if !part.is_empty() {
            message.push_str(": ");
            message.push_str(&part);
        }
    }
    message = message.chars().take(MAX_MESSAGE).collect();
    message.push_str(&format!(" [{}]", text(&report, "code")));
    RuleDiagnostic {
        path: text(label, "code_origin"),
        line: number("line"),
        column: number("column"),
        message: printable(&message),
        error,
    }
}

/// At most [`MAX_DIAGNOSTICS`] of a kind, in order of place within each file.
fn bounded(diagnostics: Vec<RuleDiagnostic>) -> Vec<RuleDiagnostic> {
    let (errors, warnings): (Vec<_>, Vec<_>) = diagnostics.into_iter().partition(|d| d.error);
    let mut kept: Vec<RuleDiagnostic> = Vec::new();
    for (kind, error) in [(errors, true), (warnings, false)] {
        let more = kind.len() > MAX_DIAGNOSTICS;
        kept.extend(kind.into_iter().take(MAX_DIAGNOSTICS));
        if more {
            let what = if error { "errors" } else { "warnings" };
            kept.push(RuleDiagnostic {
                path: "(all)".to_owned(),
                line: 1,
                column: 1,
                message: format!("further {what} are not listed"),
                error,
            });
        }
    }
    kept.sort_by(|a, b| (&a.path, a.line, a.column).cmp(&(&b.path, b.line, b.column)));
    kept
}

/// Modules that the sources import and yara-x lacks.
fn missing_modules(set: &SourceSet) -> HashSet<String> {
    let known: HashSet<&str> = yara_x::mods::module_names().collect();
    let mut missing = HashSet::new();
    for text in set.sources.iter().flat_map(|source| source.text.all()) {
        // Most files import nothing unusual, and parsing is the dear part.
        if std::str::from_utf8(&text.bytes).is_err()
            || !text.bytes.windows(6).any(|w| w == b"import")
        {
            continue;
        }
        let ast = AST::from(text.bytes.as_slice());
        missing.extend(
            ast.imports()
                .filter(|import| !known.contains(import.module_name))
                .map(|import| import.module_name.to_owned()),
        );
    }
    missing
}

/// The files of the set with the number of rules taken from each.
fn rule_files(
    set: &SourceSet,
    facts: &[Vec<RuleFacts>],
    compiled: &HashSet<(&str, &str)>,
) -> Vec<RuleFile> {
    let mut files = Vec::new();
    for (source, facts) in set.sources.iter().zip(facts) {
        let texts = source.text.all();
        let mut entries = vec![0_u64; texts.len()];
        let mut counted = HashSet::new();
        for rule in facts {
            let name = rule.name.as_str();
            // Of a name declared twice the first is used.
            if compiled.contains(&(source.namespace.as_str(), name))
                && counted.insert(name)
                && let Some(count) = entries.get_mut(rule.text)
            {
                *count += 1;
            }
        }
        files.extend(texts.iter().zip(entries).map(|(text, entries)| RuleFile {
            path: text.path.clone(),
            sha256: text.sha256,
            entries,
        }));
    }
    files
}

/// Namespace and name of each rule, and whether it needs the whole file.
fn whole_file_rules<'a>(
    set: &'a SourceSet,
    facts: &'a [Vec<RuleFacts>],
) -> HashMap<(&'a str, &'a str), bool> {
    let mut whole = HashMap::new();
    for (source, facts) in set.sources.iter().zip(facts) {
        for rule in facts {
            *whole.entry((source.namespace.as_str(), rule.name.as_str())).or_default() |=
                rule.whole_file;
        }
    }
    whole
}

/// The counts of a built set.
fn set_info(
    index: RouteIndex,
    rules: &yara_x::Rules,
    whole: &HashMap<(&str, &str), bool>,
    length: usize,
) -> SetInfo {
    let mut info = SetInfo { index, length: length as u64, ..SetInfo::EMPTY };
    for rule in rules.iter() {
        info.rules += 1;
        info.patterns += rule.patterns().len() as u64;
        // A rule that the parser's facts miss is counted as one that could not be judged.
        let needs = whole.get(&(rule.namespace(), rule.identifier())).copied().unwrap_or(true);
        info.needs_whole_file += u64::from(needs);
    }
    info
}

/// All rules in one set, for comparing.
#[cfg(test)]
pub(crate) fn compile_unrouted(set: &SourceSet) -> Result<yara_x::Rules, RulesError> {
    let facts: Vec<_> = set.sources.iter().map(routing::facts).collect();
    Ok(add_sources(set, &facts, None, &missing_modules(set))?.0.build())
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
