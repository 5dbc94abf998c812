//! Rule matches → findings.
//!
//! Purpose: one finding for each rule that matched, with what its author wrote about it. Touches the
//! matches it is given. Never decides whether a rule is right.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cleanroom_contract::{Finding, PatternMatch, RuleMatch, Severity, printable};
use serde_json::Value;

use super::{EVIDENCE_LIMIT, Subject, TEXT_LIMIT, Verdict, severity_of_score};

/// The findings of the rules that matched `subject`, in the order of `matches`.
///
/// Severity is the metadata's `severity` where it is one of the words, else that of its `score`, else high.
/// The technique is the first ATT&CK id in `mitre`, `attack` or `technique`, or in metadata whose name
/// contains one of these words.
pub(crate) fn judge_matches(subject: &Subject<'_>, matches: &[RuleMatch]) -> Vec<Finding> {
    matches.iter().map(|rule| verdict(rule).on(subject)).collect()
}

fn verdict(rule: &RuleMatch) -> Verdict {
    let text = |name| string(&rule.metadata, name).map(|text| short(text, TEXT_LIMIT));
    Verdict {
        source: format!("rule:{}:{}", rule.namespace, rule.rule),
        severity: severity(&rule.metadata),
        title: short(&rule.rule, TEXT_LIMIT),
        reason: text("description")
            .unwrap_or_else(|| format!("The rule {} matched.", printable(&rule.rule))),
        technique: technique(&rule.metadata),
        evidence: (!rule.patterns.is_empty()).then(|| evidence(&rule.patterns)),
        author: text("author"),
    }
}

fn short(text: &str, limit: usize) -> String {
    printable(text).chars().take(limit).collect()
}

/// A text of the metadata that is not empty, whatever the case of its name.
fn string<'a>(metadata: &'a BTreeMap<String, Value>, name: &str) -> Option<&'a str> {
    let mut values = metadata.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
    values.find_map(|(_, value)| value.as_str()).filter(|text| !text.trim().is_empty())
}

fn severity(metadata: &BTreeMap<String, Value>) -> Severity {
    let word = string(metadata, "severity").and_then(|word| {
        Some(match word.trim().to_ascii_lowercase().as_str() {
            "critical" => Severity::Critical,
            "high" => Severity::High,
            "medium" | "moderate" => Severity::Medium,
            "low" => Severity::Low,
            "info" | "informational" | "information" | "none" => Severity::Info,
            _ => return None,
        })
    });
    let score = || {
        let (_, value) = metadata.iter().find(|(key, _)| key.eq_ignore_ascii_case("score"))?;
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
        Some(severity_of_score(number))
    };
    word.or_else(score).unwrap_or(Severity::High)
}

fn technique(metadata: &BTreeMap<String, Value>) -> Option<String> {
    ["mitre", "attack", "technique"].into_iter().find_map(|word| {
        let named = metadata.iter().filter(|(key, _)| key.to_ascii_lowercase().contains(word));
        named.filter_map(|(_, value)| value.as_str()).find_map(technique_in)
    })
}

/// The first `T1234` or `T1234.567` in `text` that is a word of its own.
fn technique_in(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    (0..bytes.len()).find_map(|start| {
        let digits = |from: usize, count: usize| {
            bytes.get(from..from + count).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
                && !bytes.get(from + count).is_some_and(u8::is_ascii_alphanumeric)
        };
        let begins = start == 0 || !bytes.get(start - 1).is_some_and(u8::is_ascii_alphanumeric);
        if !begins || bytes.get(start) != Some(&b'T') || !digits(start + 1, 4) {
            return None;
        }
        let sub = bytes.get(start + 5) == Some(&b'.') && digits(start + 6, 3);
        text.get(start..start + if sub { 9 } else { 5 }).map(str::to_owned)
    })
}

/// `$a at 0x10, 3 times: curl\x00…` for each pattern, as far as there is room.
fn evidence(patterns: &[PatternMatch]) -> String {
    let mut out = String::new();
    for pattern in patterns {
        if out.len() >= EVIDENCE_LIMIT {
            break;
        }
        if !out.is_empty() {
            out.push_str("; ");
        }
        out.push_str(&printable(&pattern.pattern));
        if let Some(offset) = pattern.offsets.first() {
            out.push_str(&format!(" at {offset:#x}"));
        }
        if pattern.count > 1 {
            out.push_str(&format!(", {} times", pattern.count));
        }
        let first = pattern
            .bytes
            .first()
            .and_then(|first| BASE64_STANDARD.decode(first).ok())
            .unwrap_or_default();
        if !first.is_empty() {
            out.push_str(": ");
            out.extend(first.iter().flat_map(|byte| shown(*byte)));
        }
    }
    out.chars().take(EVIDENCE_LIMIT).collect()
}

/// A byte as ASCII, or as `\x00`.
fn shown(byte: u8) -> Vec<char> {
    match byte {
        b'\\' => vec!['\\', '\\'],
        b' ' | 0x21..=0x7e => vec![char::from(byte)],
        _ => format!("\\x{byte:02x}").chars().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SUBJECT: Subject<'_> = Subject {
        volume: "disk.img:p1",
        path: b"/tmp/x",
        mode: 0o755,
        format: None,
        binary: None,
        entropy: None,
        sha256: None,
    };

    fn rule(metadata: Value) -> RuleMatch {
        RuleMatch {
            rule: "Miner".into(),
            namespace: "coin.yar".into(),
            tags: Vec::new(),
            metadata: serde_json::from_value(metadata).unwrap(),
            patterns: Vec::new(),
        }
    }

    fn finding(metadata: Value) -> Finding {
        judge_matches(&SUBJECT, &[rule(metadata)]).remove(0)
    }

    #[test]
    fn metadata_decides_the_severity() {
        for (metadata, severity) in [
            (json!({}), Severity::High),
            (json!({"severity": "CRITICAL"}), Severity::Critical),
            (json!({"severity": "low", "score": 95}), Severity::Low),
            (json!({"severity": "orange", "score": 65}), Severity::Medium),
            (json!({"severity": "orange"}), Severity::High),
            (json!({"score": 90}), Severity::Critical),
            (json!({"score": 75}), Severity::High),
            (json!({"score": 60.5}), Severity::Medium),
            (json!({"score": "40"}), Severity::Low),
            (json!({"score": 39}), Severity::Info),
            (json!({"score": 0}), Severity::Info),
            (json!({"score": -10}), Severity::Info),
            (json!({"score": true}), Severity::High),
        ] {
            assert_eq!(finding(metadata.clone()).severity, severity, "{metadata}");
        }
    }

    #[test]
    fn a_technique_is_taken_where_it_looks_like_one() {
        for (metadata, technique) in [
            (json!({"mitre": "T1496"}), Some("T1496")),
            (json!({"mitre_attack": "TA0040, T1059.004 (Unix Shell)"}), Some("T1059.004")),
            (json!({"technique": "https://attack.mitre.org/techniques/T1105."}), Some("T1105")),
            (json!({"attack": "T1059.0041"}), Some("T1059")),
            (json!({"attack": "T10599"}), None),
            (json!({"attack": "AT1059"}), None),
            (json!({"mitre": "none", "technique": "T1027"}), Some("T1027")),
            (json!({"reference": "T1027"}), None),
            (json!({"mitre": "T102\u{e9}"}), None),
        ] {
            assert_eq!(finding(metadata.clone()).technique.as_deref(), technique, "{metadata}");
        }
    }

    #[test]
    fn title_reason_author_and_source_come_from_the_rule() {
        let found = finding(json!({"description": "A coin\u{1b}[0m miner", "Author": "A. Nalyst"}));
        assert_eq!((&*found.title, &*found.reason), ("Miner", "A coin\\u{1b}[0m miner"));
        assert_eq!(
            (found.author.as_deref(), &*found.source),
            (Some("A. Nalyst"), "rule:coin.yar:Miner")
        );
        assert_eq!(
            found.id,
            super::super::finding_id("disk.img:p1", b"/tmp/x", "rule:coin.yar:Miner")
        );
        assert_eq!(finding(json!({})).reason, "The rule Miner matched.");
    }

    #[test]
    fn evidence_shows_patterns_offsets_and_bytes() {
        let pattern = |pattern: &str, count, offsets: &[u64], first: &[u8]| PatternMatch {
            pattern: pattern.into(),
            count,
            offsets: offsets.to_vec(),
            bytes: vec![BASE64_STANDARD.encode(first)],
        };
        let patterns = vec![
            pattern("$a", 3, &[16, 32], b"curl\0\\"),
            pattern("$b", 1, &[7], b"x"),
            PatternMatch { bytes: vec!["not base64".into()], ..pattern("$c", 1, &[], b"") },
        ];
        let matched = RuleMatch { patterns, ..rule(json!({})) };
        let found = judge_matches(&SUBJECT, std::slice::from_ref(&matched)).remove(0);
        assert_eq!(
            found.evidence.as_deref(),
            Some("$a at 0x10, 3 times: curl\\x00\\\\; $b at 0x7: x; $c")
        );
        let many = RuleMatch { patterns: vec![pattern("$a", 1, &[1], &[0; 64]); 100], ..matched };
        assert_eq!(
            judge_matches(&SUBJECT, &[many]).remove(0).evidence.unwrap().chars().count(),
            1024
        );
        assert_eq!(finding(json!({})).evidence, None);
    }
}
