//! Path patterns: many regular expressions over one path at once.

use std::collections::BTreeMap;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

use super::IndicatorError;

/// Patterns that are compiled together. More make one automaton too large to keep in a cache.
const SET: usize = 2000;
/// Bytes that one compiled set may take; lists come from the operator.
const SIZE_LIMIT: usize = 512 << 20;
/// Bytes of states that a search may keep, for each set and thread.
const STATES_LIMIT: usize = 32 << 20;

/// A pattern of a list.
#[derive(Debug)]
pub(super) struct PathPattern {
    /// Number of the list.
    pub(super) list: u16,
    /// From 1.
    pub(super) line: u64,
    /// As written.
    pub(super) pattern: String,
    /// As written.
    pub(super) score: i64,
    /// As written.
    pub(super) false_positive: Option<String>,
    /// The comment before it.
    pub(super) description: Option<String>,
}

/// A pattern that matched a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathHit<'a> {
    /// The list's display name.
    pub(crate) list: &'a str,
    /// Line in the list, from 1.
    pub(crate) line: u64,
    /// The regular expression as written.
    pub(crate) pattern: &'a str,
    /// As written; `checks::severity_of_score` says what it means.
    pub(crate) score: i64,
    /// The last comment before the pattern.
    pub(crate) description: Option<&'a str>,
}

/// All patterns, compiled.
#[derive(Debug)]
pub(super) struct PathPatterns {
    patterns: Vec<PathPattern>,
    /// By pattern.
    false_positives: Vec<Option<Regex>>,
    /// Each of [`SET`] patterns, in order.
    sets: Vec<RegexSet>,
}

impl PathPatterns {
    /// Compiles `patterns`, or gives them back with what kept them from it; [`wrong`] then says which it is.
    pub(super) fn new(patterns: Vec<PathPattern>) -> Result<Self, (Vec<PathPattern>, String)> {
        let sets: Result<_, _> = patterns.chunks(SET).map(compile).collect();
        let sets = match sets {
            Ok(sets) => sets,
            Err(error) => return Err((patterns, error.to_string())),
        };
        let single = |pattern: &PathPattern| pattern.false_positive.as_deref().map(single);
        let regexes: Result<_, _> =
            patterns.iter().map(|pattern| single(pattern).transpose()).collect();
        match regexes {
            Ok(false_positives) => Ok(Self { patterns, false_positives, sets }),
            Err(error) => Err((patterns, error)),
        }
    }

    /// The patterns that match `path`, in order.
    pub(super) fn matches<'a>(&'a self, path: &[u8], lists: &'a [String]) -> Vec<PathHit<'a>> {
        let matched = self.sets.iter().enumerate().flat_map(|(set, regexes)| {
            regexes.matches(path).into_iter().map(move |index| set * SET + index)
        });
        let harmless = |index: usize| {
            self.false_positives
                .get(index)
                .and_then(Option::as_ref)
                .is_some_and(|regex| regex.is_match(path))
        };
        let hit = |index: usize| {
            let pattern = self.patterns.get(index)?;
            Some(PathHit {
                list: lists.get(usize::from(pattern.list))?,
                line: pattern.line,
                pattern: &pattern.pattern,
                score: pattern.score,
                description: pattern.description.as_deref(),
            })
        };
        matched.filter(|index| !harmless(*index)).filter_map(hit).collect()
    }
}

/// The first fault of each list that has a pattern which cannot be used, by the list's number. `lists` are the display
/// names. A set does not say which of its patterns it is, so each is compiled by itself: only worth it where one is.
pub(super) fn wrong(patterns: &[PathPattern], lists: &[String]) -> BTreeMap<u16, IndicatorError> {
    let mut wrong = BTreeMap::new();
    for pattern in patterns {
        if wrong.contains_key(&pattern.list) {
            continue;
        }
        let false_positive = pattern.false_positive.as_deref().map(single).transpose();
        let problem = match (single(&pattern.pattern), false_positive) {
            (Err(error), _) => format!("the pattern {error}"),
            (_, Err(error)) => format!("the false-positive pattern {error}"),
            _ => continue,
        };
        let list = lists.get(usize::from(pattern.list)).cloned().unwrap_or_default();
        wrong.insert(pattern.list, IndicatorError::Line { list, line: pattern.line, problem });
    }
    wrong
}

/// Loki's lists are written for Windows; on other systems Loki itself reads `\\` (an escaped backslash) as
/// `/` and leaves `C:` out, so that a pattern fits where a Windows disk is mounted.
fn for_slashes(pattern: &str) -> String {
    pattern.replace("\\\\", "/").replace("C:", "")
}

fn compile(group: &[PathPattern]) -> Result<RegexSet, regex::Error> {
    let patterns = group.iter().map(|pattern| for_slashes(&pattern.pattern));
    // Without Unicode, so that `.` and negated classes match any byte of a name.
    RegexSetBuilder::new(patterns)
        .unicode(false)
        .size_limit(SIZE_LIMIT)
        .dfa_size_limit(STATES_LIMIT)
        .build()
}

/// One regular expression, or what is wrong with it in one line.
fn single(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&for_slashes(pattern)).unicode(false).build().map_err(|error| {
        // The last line of a syntax error's text says what it is; those before show where.
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("cannot be used: {last}")
    })
}
