//! Which rules a file can match at all, judged by its first bytes.
//!
//! Most rules of a large pack ask for a file header (`uint16(0) == 0x5A4D`) before anything else, and a
//! server's disk holds few such files. The pack therefore holds up to three rule sets, and each file is
//! scanned once, with the smallest set that can still give every match.
//!
//! Purpose: read the parsed rules, find the headers that their conditions provably require, and plan the
//! sets. Pure; touches nothing. Never routes away a rule whose absence could change another's result:
//! global rules, rules that a kept rule refers to, rules whose name is declared twice, and rules of files
//! that have syntax errors or includes are in every set.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Range,
};

use serde::{Deserialize, Serialize};
use yara_x_parser::ast::{
    AST, Expr, FuncCall, HexToken, MatchAnchor, Pattern, Rule, RuleFlags, WithSpan,
    dfs::{DFSEvent, DFSIter},
};

use super::{
    source::{Source, Text},
    syntax::rule_spans,
};

/// The magic number of ELF files (System V ABI, "ELF Header", `EI_MAG0` to `EI_MAG3`).
pub(crate) const ELF: &[u8] = b"\x7fELF";

/// How many of a file's first bytes decide its route. Required headers are cut to this length, which
/// can only send more files to the larger set.
pub(crate) const HEAD_BYTES: usize = 32;

/// Most alternatives of one rule's header; a rule with more is never routed away.
const MAX_ALTERNATIVES: usize = 64;

/// A header: the first bytes that a file must have.
pub(crate) type Header = Vec<u8>;

/// One of the pack's rule sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RouteIndex {
    /// Rules that any file can match; all rules where routing would gain little.
    Other,
    /// Those, and the rules that an ELF file can match.
    Elf,
    /// All rules.
    Full,
}

/// What the parser tells of one rule.
#[derive(Debug)]
pub(crate) struct RuleFacts {
    /// Its identifier.
    pub(crate) name: String,
    /// Which of the source's texts declares it: an index into [`Text::all`].
    pub(crate) text: usize,
    /// Its bytes in that text.
    pub(crate) span: Range<usize>,
    /// Declared `global`.
    pub(crate) global: bool,
    /// Patterns that it declares.
    pub(crate) patterns: u64,
    /// The file must begin with one of these, or the condition is not true.
    pub(crate) headers: Option<Vec<Header>>,
    /// Rules of the same file that it refers to, as indices.
    pub(crate) refers: Vec<usize>,
    /// Modules that its condition names.
    pub(crate) modules: BTreeSet<String>,
    /// Its condition, or that of a rule it depends on, needs the whole file in memory.
    pub(crate) whole_file: bool,
    /// It may be left out for files that lack its header; final after [`settle`].
    pub(crate) routable: bool,
}

/// Reads the rules of a source. A text that is not UTF-8, which the compiler refuses, has none.
pub(crate) fn facts(source: &Source) -> Vec<RuleFacts> {
    let texts = source.text.all();
    let mut rules: Vec<RuleFacts> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    let mut routable = source.text.includes.is_empty();
    for (index, text) in texts.iter().enumerate() {
        if std::str::from_utf8(&text.bytes).is_err() {
            continue;
        }
        let ast = AST::from(text.bytes.as_slice());
        let spans = rule_spans(&text.bytes);
        routable &= ast.errors().is_empty();
        let imports: HashSet<&str> = ast.imports().map(|import| import.module_name).collect();
        for rule in ast.rules() {
            let known = Known { by_name: &by_name, rules: &rules, imports: &imports };
            let Some(mut fact) = rule_facts(rule, &spans, &known) else {
                // Never seen; without its span it cannot be blanked, so nothing here may be.
                routable = false;
                continue;
            };
            fact.text = index;
            by_name.insert(fact.name.clone(), rules.len());
            rules.push(fact);
        }
    }
    for rule in &mut rules {
        rule.routable = routable;
    }
    rules
}

/// Finishes the facts of a source once the compiler has said which of its rules are sound.
///
/// A rule keeps its header only where it is clear what its condition means: not where a name that it
/// depends on is declared twice or did not compile, since such a name may stand for something else.
pub(crate) fn settle(rules: &mut [RuleFacts], is_compiled: impl Fn(&str) -> bool) {
    let global_needs_file = rules.iter().any(|rule| rule.global && rule.whole_file);
    let mut declared: HashMap<String, usize> = HashMap::new();
    for rule in rules.iter() {
        *declared.entry(rule.name.clone()).or_default() += 1;
    }
    let mut clear: Vec<bool> = Vec::with_capacity(rules.len());
    for rule in rules.iter_mut() {
        // References point backwards, so what they depend on is judged already.
        let is_clear = declared.get(&rule.name) == Some(&1)
            && is_compiled(&rule.name)
            && rule.refers.iter().all(|referred| clear.get(*referred) == Some(&true));
        clear.push(is_clear);
        // No rule of a namespace matches unless its global rules do.
        rule.whole_file |= global_needs_file;
        rule.routable &= is_clear && !rule.global && rule.headers.is_some();
    }
}

/// What is known while a rule is read.
struct Known<'a> {
    by_name: &'a HashMap<String, usize>,
    rules: &'a [RuleFacts],
    imports: &'a HashSet<&'a str>,
}

/// Reads one rule; nothing where its span is not among the spans of the text.
fn rule_facts(rule: &Rule<'_>, spans: &[Range<usize>], known: &Known<'_>) -> Option<RuleFacts> {
    let at = rule.identifier.span().start();
    let before = spans.partition_point(|span| span.start <= at);
    let span = spans.get(before.checked_sub(1)?).filter(|span| span.contains(&at))?.clone();
    let mut refers = BTreeSet::new();
    let mut whole_file = false;
    let mut modules = BTreeSet::new();
    for event in DFSIter::new(&rule.condition) {
        let DFSEvent::Enter(expr) = event else { continue };
        match expr {
            Expr::Filesize { .. } | Expr::Entrypoint { .. } => whole_file = true,
            // Functions without an object are the built-in reads of the file: uint16 and its kin.
            Expr::FuncCall(call) => whole_file |= call.object.is_none(),
            Expr::Ident(ident) => {
                if known.imports.contains(ident.name) {
                    whole_file = true;
                    modules.insert(ident.name.to_owned());
                }
                refers.extend(known.by_name.get(ident.name).copied());
            }
            _ => {}
        }
    }
    whole_file |= refers.iter().any(|r| known.rules.get(*r).is_some_and(|rule| rule.whole_file));
    let patterns = rule.patterns.as_deref().unwrap_or_default();
    Some(RuleFacts {
        name: rule.identifier.name.to_owned(),
        text: 0,
        span,
        global: rule.flags.contains(RuleFlags::Global),
        patterns: u64::try_from(patterns.len()).unwrap_or(u64::MAX),
        headers: required(&rule.condition, patterns, known),
        refers: refers.into_iter().collect(),
        modules,
        whole_file,
        routable: false,
    })
}

/// The headers of which a file must have one for the expression to be true; nothing where no such set
/// is proven. An undefined operand makes `and` not true and leaves `or` to its other branches, so a
/// file shorter than the header is covered too.
fn required(expr: &Expr<'_>, patterns: &[Pattern<'_>], known: &Known<'_>) -> Option<Vec<Header>> {
    match expr {
        Expr::And(and) => and
            .operands()
            .filter_map(|operand| required(operand, patterns, known))
            .min_by_key(|headers| (headers.len(), Reverse(headers.iter().map(Vec::len).min()))),
        Expr::Or(or) => {
            let mut all = BTreeSet::new();
            for operand in or.operands() {
                all.extend(required(operand, patterns, known)?);
                if all.len() > MAX_ALTERNATIVES {
                    return None;
                }
            }
            Some(all.into_iter().collect())
        }
        Expr::Eq(eq) => compared_read(&eq.lhs, &eq.rhs).or_else(|| compared_read(&eq.rhs, &eq.lhs)),
        Expr::PatternMatch(found) => {
            let Some(MatchAnchor::At(at)) = &found.anchor else { return None };
            let at_start = matches!(&at.expr, Expr::LiteralInteger(offset) if offset.value == 0);
            let name = found.identifier.name;
            let mut named = patterns.iter().filter(|pattern| pattern.identifier().name == name);
            let header = named.next().filter(|_| at_start).and_then(fixed_start)?;
            named.next().is_none().then(|| vec![header])
        }
        Expr::Ident(ident) => known.rules.get(*known.by_name.get(ident.name)?)?.headers.clone(),
        _ => None,
    }
}

/// The header in `read == value`, where `read` is an integer function at offset 0.
fn compared_read(read: &Expr<'_>, value: &Expr<'_>) -> Option<Vec<Header>> {
    let (Expr::FuncCall(call), Expr::LiteralInteger(value)) = (read, value) else { return None };
    let (width, big_endian) = integer_read(call)?;
    let value = u64::try_from(value.value).ok().filter(|_| !value.is_unsigned)?;
    let bytes = value.to_be_bytes();
    // A value wider than the function's result is never equal; such a rule is left alone.
    let (over, bytes) = bytes.split_at_checked(bytes.len().checked_sub(width)?)?;
    if over.iter().any(|byte| *byte != 0) {
        return None;
    }
    let mut header = bytes.to_vec();
    if !big_endian {
        header.reverse();
    }
    Some(vec![header])
}

/// Width in bytes and byte order of `uint16(0)` and its kin; nothing for other calls and offsets.
fn integer_read(call: &FuncCall<'_>) -> Option<(usize, bool)> {
    let [Expr::LiteralInteger(offset)] = call.args.as_slice() else { return None };
    if call.object.is_some() || offset.value != 0 {
        return None;
    }
    let name = call.identifier.name;
    let (name, big_endian) = name.strip_suffix("be").map_or((name, false), |name| (name, true));
    let width = match name.strip_prefix('u').unwrap_or(name) {
        "int8" => 1,
        "int16" => 2,
        "int32" => 4,
        _ => return None,
    };
    Some((width, big_endian))
}

/// The bytes with which every match of a pattern begins.
fn fixed_start(pattern: &Pattern<'_>) -> Option<Header> {
    if !pattern.modifiers().is_empty() {
        return None;
    }
    let mut bytes: Header = match pattern {
        Pattern::Text(text) => text.text.value.to_vec(),
        Pattern::Hex(hex) => hex
            .sub_patterns
            .iter()
            .map_while(|token| match token {
                HexToken::Byte(byte) if byte.mask == 0xff => Some(byte.value),
                _ => None,
            })
            .collect(),
        Pattern::Regexp(_) => return None,
    };
    bytes.truncate(HEAD_BYTES);
    (!bytes.is_empty()).then_some(bytes)
}

/// Whether an ELF file can begin with the header.
fn fits_elf(header: &[u8]) -> bool {
    header.starts_with(ELF) || ELF.starts_with(header)
}

/// Which rules of which source are in a set: one flag a rule, in the order of [`facts`].
pub(crate) type Kept = Vec<Vec<bool>>;

/// The sets to build.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Files that begin with one of these need the full set, ELF files aside. Sorted.
    pub(crate) headers: Vec<Header>,
    /// The set for ELF files.
    pub(crate) elf: RouteIndex,
    /// The sets beside the full one, which takes the place of `Other` where there are none.
    pub(crate) partial: BTreeMap<RouteIndex, Kept>,
}

/// Plans the sets. One set serves all where the smallest would still hold more than four fifths of the
/// patterns: every set is loaded by every worker, so each has to pay.
pub(crate) fn plan(sources: &[Vec<RuleFacts>]) -> Plan {
    let other = keep(sources, |_| false);
    let elf = keep(sources, |rule| rule.headers.iter().flatten().any(|header| fits_elf(header)));
    let all = weight(sources, None);
    let pays = |kept: &Kept| weight(sources, Some(kept)).saturating_mul(5) <= all.saturating_mul(4);
    let mut plan = Plan { headers: Vec::new(), elf: RouteIndex::Other, partial: BTreeMap::new() };
    if all == 0 || !pays(&other) {
        return plan;
    }
    let left_out = sources.iter().zip(&other).flat_map(|(rules, kept)| rules.iter().zip(kept));
    let headers: BTreeSet<Header> = left_out
        .filter(|(_, kept)| !**kept)
        .flat_map(|(rule, _)| rule.headers.iter().flatten().cloned())
        .collect();
    plan.headers = headers.into_iter().collect();
    plan.elf = if elf == other {
        RouteIndex::Other
    } else if pays(&elf) {
        plan.partial.insert(RouteIndex::Elf, elf);
        RouteIndex::Elf
    } else {
        RouteIndex::Full
    };
    plan.partial.insert(RouteIndex::Other, other);
    plan
}

/// The rules that must stay, those that `fits` wants, and all that these refer to.
fn keep(sources: &[Vec<RuleFacts>], fits: impl Fn(&RuleFacts) -> bool) -> Kept {
    let mut all = Vec::with_capacity(sources.len());
    for rules in sources {
        let mut kept: Vec<bool> = rules.iter().map(|rule| !rule.routable || fits(rule)).collect();
        // A rule refers to earlier ones only, so one pass from the end reaches everything.
        for (index, rule) in rules.iter().enumerate().rev() {
            if kept.get(index) == Some(&true) {
                for referred in &rule.refers {
                    if let Some(flag) = kept.get_mut(*referred) {
                        *flag = true;
                    }
                }
            }
        }
        all.push(kept);
    }
    all
}

/// Patterns of the kept rules; each rule counts as one more, for its condition.
fn weight(sources: &[Vec<RuleFacts>], kept: Option<&Kept>) -> u64 {
    let mut sum = 0_u64;
    for (source, rules) in sources.iter().enumerate() {
        for (index, rule) in rules.iter().enumerate() {
            let counted =
                kept.is_none_or(|kept| kept.get(source).and_then(|k| k.get(index)) == Some(&true));
            if counted {
                sum = sum.saturating_add(rule.patterns).saturating_add(1);
            }
        }
    }
    sum
}

/// Chooses the set for a file from its first bytes: at least [`HEAD_BYTES`] of them, or all it has.
pub(crate) fn choose(headers: &[Header], elf: RouteIndex, head: &[u8]) -> RouteIndex {
    if head.starts_with(ELF) {
        return elf;
    }
    let starts = 1..=head.len().min(HEAD_BYTES);
    let known = starts
        .filter_map(|length| head.get(..length))
        .any(|start| headers.binary_search_by(|header| header.as_slice().cmp(start)).is_ok());
    if known { RouteIndex::Full } else { RouteIndex::Other }
}

/// The texts to compile for a source: path and bytes. Rules outside `kept` are blanked; includes are
/// taken apart, so that the included text stands where the statement was and every line keeps its number.
pub(crate) fn texts<'a>(
    source: &'a Source,
    facts: &[RuleFacts],
    kept: Option<&[bool]>,
) -> Vec<(&'a str, Vec<u8>)> {
    if !source.text.includes.is_empty() {
        let mut out = Vec::new();
        take_apart(&source.text, &mut out);
        return out;
    }
    let mut bytes = source.text.bytes.clone();
    if let Some(kept) = kept {
        let mut modules = BTreeSet::new();
        for (rule, kept) in facts.iter().zip(kept) {
            if *kept {
                modules.extend(rule.modules.iter().map(String::as_str));
            } else {
                super::syntax::blank(&mut bytes, rule.span.clone());
            }
        }
        // An imported module reads every file, whether or not a rule asks it: on small files that
        // is most of the time a scan takes.
        for import in AST::from(source.text.bytes.as_slice()).imports() {
            if !modules.contains(import.module_name) {
                super::syntax::blank(&mut bytes, import.span().range());
            }
        }
    }
    vec![(source.text.path.as_str(), bytes)]
}

/// Adds a text's parts and its includes in reading order.
fn take_apart<'a>(text: &'a Text, out: &mut Vec<(&'a str, Vec<u8>)>) {
    let mut from = 0;
    let ends = text
        .includes
        .iter()
        .map(|include| (include.span.start, include.span.end, include.text.as_ref()));
    for (start, end, included) in ends.chain([(text.bytes.len(), text.bytes.len(), None)]) {
        let part = text.bytes.get(from..start).unwrap_or_default();
        // An index file is nothing but includes: a part that declares nothing is not worth compiling.
        if !super::syntax::is_trivia(part) {
            let before = text.bytes.get(..from).unwrap_or_default();
            let mut bytes = blank_before(before);
            bytes.extend_from_slice(part);
            out.push((text.path.as_str(), bytes));
        }
        if let Some(included) = included {
            take_apart(included, out);
        }
        from = end;
    }
}

/// The shortest blank text that ends at the same line and column.
fn blank_before(before: &[u8]) -> Vec<u8> {
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    let last = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let columns = String::from_utf8_lossy(last).chars().count();
    let mut blank = vec![b'\n'; lines];
    blank.resize(lines.saturating_add(columns), b' ');
    blank
}

#[cfg(test)]
#[path = "routing_tests.rs"]
mod tests;
