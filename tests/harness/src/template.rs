//! Reads a CloudFormation template and resolves it for given parameters, as CloudFormation would.
//!
//! Enough of the language for this project's own templates, and an error for all else: tests prove on the result what no
//! emulator can show, and see the user data that an instance would get. Reads the one file it is given; creates nothing, and
//! knows no service: what a resource would be called is made up, in the form that its service gives it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use saphyr::{LoadableYamlNode, ScalarOwned, YamlOwned};
use serde_json::{Map, Value, json};

/// The account of every rendered stack.
pub const ACCOUNT: &str = "123456789012";

/// The Region of every rendered stack.
pub const REGION: &str = "us-east-1";

/// The unique part of every rendered stack's id.
const STACK_UUID: &str = "11111111-2222-3333-4444-555555555555";

/// A template, with its short forms (`!Ref`) written out.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    document: Value,
}

/// What a template comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The resources that would be made, by their names in the template: `Type`, `Properties` and what else is said of them.
    pub resources: BTreeMap<String, Value>,
    /// The outputs that would be given.
    pub outputs: BTreeMap<String, Value>,
}

impl Rendered {
    /// A property of a resource, by JSON pointer (RFC 6901); null where there is none.
    #[must_use]
    pub fn property(&self, resource: &str, pointer: &str) -> &Value {
        let found = self.resources.get(resource).map(|resource| &resource["Properties"]);
        found.and_then(|properties| properties.pointer(pointer)).unwrap_or(&Value::Null)
    }

    /// The resources of a type, with their properties.
    pub fn of_type<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let fitting = self.resources.iter().filter(move |(_, resource)| resource["Type"] == kind);
        fitting.map(|(name, resource)| (name.as_str(), &resource["Properties"]))
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Where the file can not be read, or is not the YAML of a template.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("read the template {}", path.display()))
    }

    /// Reads a template's text.
    ///
    /// # Errors
    /// Where it is not the YAML of a template.
    pub fn parse(text: &str) -> Result<Self> {
        let documents = YamlOwned::load_from_str(text).context("not YAML")?;
        let [document] = documents.as_slice() else {
            bail!("{} YAML documents instead of one", documents.len())
        };
        let document = written_out(document)?;
        ensure!(document["Resources"].is_object(), "no resources");
        Ok(Self { document })
    }

    /// All of it, unresolved.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// Resolves it for a stack of this name.
    ///
    /// # Errors
    /// Where a parameter is missing, unknown or of a value that is not allowed, and where the template says what is not
    /// understood here.
    pub fn render(&self, stack: &str, given: &BTreeMap<String, String>) -> Result<Rendered> {
        let scope = Scope { document: &self.document, stack, values: self.values(given)? };
        let mut resources = BTreeMap::new();
        for (name, resource) in members(&self.document["Resources"])? {
            if scope.made(resource)? {
                let resolved = scope.resolve(resource).with_context(|| name.clone())?;
                resources.insert(name.clone(), resolved.unwrap_or_default());
            }
        }
        let mut outputs = BTreeMap::new();
        for (name, output) in self.document["Outputs"].as_object().into_iter().flatten() {
            if scope.made(output)? {
                let value = scope.resolve(&output["Value"]).with_context(|| name.clone())?;
                outputs.insert(name.clone(), value.unwrap_or_default());
            }
        }
        Ok(Rendered { resources, outputs })
    }

    /// Every parameter's value.
    fn values(&self, given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
        let declared = members(&self.document["Parameters"])?;
        if let Some(unknown) = given.keys().find(|name| !declared.contains_key(*name)) {
            bail!("the template has no parameter {unknown}");
        }
        let value = |(name, declaration): (&String, &Value)| {
            let default = Some(&declaration["Default"]).filter(|value| !value.is_null());
            let value = given.get(name).cloned().or_else(|| default.map(text));
            let value = value.with_context(|| format!("no value for the parameter {name}"))?;
            let allowed = declaration["AllowedValues"].as_array();
            ensure!(
                allowed.is_none_or(|allowed| allowed.iter().any(|one| text(one) == value)),
                "{value:?} is no value for the parameter {name}"
            );
            Ok((name.clone(), value))
        };
        declared.iter().map(value).collect()
    }
}

/// What the names in a template stand for.
struct Scope<'a> {
    document: &'a Value,
    stack: &'a str,
    values: BTreeMap<String, String>,
}

impl Scope<'_> {
    /// Whether the condition of a resource or an output holds.
    fn made(&self, item: &Value) -> Result<bool> {
        item["Condition"].as_str().map_or(Ok(true), |name| self.condition(name))
    }

    fn condition(&self, name: &str) -> Result<bool> {
        let condition = self.document["Conditions"].get(name);
        self.holds(condition.with_context(|| format!("no condition {name}"))?)
    }

    fn holds(&self, condition: &Value) -> Result<bool> {
        let (function, argument) = call(condition).context("not a condition")?;
        let list = argument.as_array().map_or(&[][..], Vec::as_slice);
        match (function, list) {
            ("Condition", _) => self.condition(argument.as_str().context("no name")?),
            ("Fn::Equals", [left, right]) => {
                let word = |value| self.resolve(value).map(|word| word.as_ref().map(text));
                Ok(word(left)? == word(right)?)
            }
            ("Fn::Not", [one]) => Ok(!self.holds(one)?),
            ("Fn::And", all) => all.iter().try_fold(true, |held, one| Ok(self.holds(one)? && held)),
            ("Fn::Or", all) => all.iter().try_fold(false, |held, one| Ok(self.holds(one)? || held)),
            _ => bail!("a condition that is not understood: {condition}"),
        }
    }

    /// A value as CloudFormation would hand it on; nothing for `AWS::NoValue`.
    fn resolve(&self, value: &Value) -> Result<Option<Value>> {
        if let Some((function, argument)) = call(value).filter(|(name, _)| *name != "Condition") {
            return self.call(function, argument).with_context(|| format!("{function} {argument}"));
        }
        Ok(Some(match value {
            Value::Array(list) => {
                let resolved: Result<Vec<_>> = list.iter().map(|one| self.resolve(one)).collect();
                Value::Array(resolved?.into_iter().flatten().collect())
            }
            Value::Object(members) => {
                let mut resolved = Map::new();
                for (name, member) in members {
                    if let Some(member) = self.resolve(member)? {
                        resolved.insert(name.clone(), member);
                    }
                }
                Value::Object(resolved)
            }
            plain => plain.clone(),
        }))
    }

    fn call(&self, function: &str, argument: &Value) -> Result<Option<Value>> {
        let list = argument.as_array().map_or(&[][..], Vec::as_slice);
        let word = |value: &Value| self.word(value);
        Ok(Some(match (function, list) {
            ("Ref", _) if argument == "AWS::NoValue" => return Ok(None),
            ("Ref", _) => self.reference(argument.as_str().context("no name")?)?.into(),
            ("Fn::GetAtt", [resource, attribute]) => {
                self.attribute(&text(resource), &text(attribute))?.into()
            }
            ("Fn::If", [condition, yes, no]) => {
                let held = self.condition(condition.as_str().context("no name")?)?;
                return self.resolve(if held { yes } else { no });
            }
            ("Fn::Base64", _) => word(argument)?.into(),
            ("Fn::Join", [between, parts]) => {
                let parts: Result<Vec<_>> = self.words(parts)?.iter().map(word).collect();
                parts?.join(&word(between)?).into()
            }
            ("Fn::Select", [which, from]) => {
                let which: usize = text(which).parse().context("no index")?;
                self.words(from)?.get(which).context("no such element")?.clone()
            }
            ("Fn::Split", [at, whole]) => {
                word(whole)?.split(word(at)?.as_str()).map(Value::from).collect()
            }
            ("Fn::Sub", [pattern, names]) => self.substitute(&text(pattern), names)?.into(),
            ("Fn::Sub", []) => self.substitute(&text(argument), &Value::Null)?.into(),
            _ => bail!("a function that is not understood"),
        }))
    }

    fn word(&self, value: &Value) -> Result<String> {
        let resolved = self.resolve(value)?.context("nothing where a text must be")?;
        ensure!(!resolved.is_array() && !resolved.is_object(), "{resolved} where a text must be");
        Ok(text(&resolved))
    }

    fn words(&self, value: &Value) -> Result<Vec<Value>> {
        match self.resolve(value)? {
            Some(Value::Array(list)) => Ok(list),
            other => bail!("{other:?} where a list must be"),
        }
    }

    /// Puts values where `${Name}` and `${Resource.Attribute}` are; `${!text}` becomes `${text}`.
    fn substitute(&self, pattern: &str, names: &Value) -> Result<String> {
        let mut made = String::new();
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after.split_once('}').context("${ without }")?;
            made.push_str(before);
            if let Some(literal) = name.strip_prefix('!') {
                made.extend(["${", literal, "}"]);
            } else if let Some(value) = names.get(name) {
                made.push_str(&self.word(value)?);
            } else if let Some((resource, attribute)) = name.split_once('.') {
                made.push_str(&self.attribute(resource, attribute)?);
            } else {
                made.push_str(&self.reference(name)?);
            }
            rest = after;
        }
        made.push_str(rest);
        Ok(made)
    }

    fn reference(&self, name: &str) -> Result<String> {
        let stack = self.stack;
        Ok(match name {
            "AWS::AccountId" => ACCOUNT.to_owned(),
            "AWS::Partition" => "aws".to_owned(),
            "AWS::Region" => REGION.to_owned(),
            "AWS::StackName" => stack.to_owned(),
            "AWS::StackId" => {
                format!("arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{stack}/{STACK_UUID}")
            }
            "AWS::URLSuffix" => "amazonaws.com".to_owned(),
            _ => match self.values.get(name) {
                Some(value) => value.clone(),
                None => self.id(name)?,
            },
        })
    }

    /// What a resource of this name would be called: where other programs read it, in its true form.
    fn id(&self, name: &str) -> Result<String> {
        let resource = self.resource(name)?;
        let number = name.trim_start_matches(char::is_alphabetic);
        Ok(match resource["Type"].as_str() {
            Some("AWS::EC2::Volume") => format!("vol-{number:0>17}"),
            Some("AWS::Logs::LogGroup") => self.word(&resource["Properties"]["LogGroupName"])?,
            _ => format!("{name}-0123456789abcdef0"),
        })
    }

    fn attribute(&self, name: &str, attribute: &str) -> Result<String> {
        let resource = self.resource(name)?;
        let properties = &resource["Properties"];
        Ok(match (resource["Type"].as_str(), attribute) {
            (Some("AWS::IAM::Role"), "Arn") => {
                let path = properties.get("Path").map_or_else(|| "/".to_owned(), text);
                format!("arn:aws:iam::{ACCOUNT}:role{path}{name}")
            }
            (Some("AWS::Logs::LogGroup"), "Arn") => {
                format!("arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{}:*", self.id(name)?)
            }
            (Some("AWS::S3::Bucket"), "Arn") => format!("arn:aws:s3:::{}", self.id(name)?),
            (Some(kind), "Arn") => {
                let service = kind.split("::").nth(1).unwrap_or_default().to_lowercase();
                format!("arn:aws:{service}:{REGION}:{ACCOUNT}:{}", self.id(name)?)
            }
            (_, "GroupId" | "QueueName") => self.id(name)?,
            _ => bail!("an attribute that is not understood: {name}.{attribute}"),
        })
    }

    /// A resource that others name: one that is not made can not be named.
    fn resource(&self, name: &str) -> Result<&Value> {
        let resource = self.document["Resources"].get(name);
        let resource = resource.with_context(|| format!("no parameter or resource {name}"))?;
        ensure!(self.made(resource)?, "{name} is named, and not made");
        Ok(resource)
    }
}

/// The function that an object calls: one member, named as a function is.
fn call(value: &Value) -> Option<(&str, &Value)> {
    let members = value.as_object().filter(|members| members.len() == 1)?;
    let (name, argument) = members.iter().next()?;
    let is_call = name == "Ref" || name == "Condition" || name.starts_with("Fn::");
    is_call.then_some((name.as_str(), argument))
}

fn members(value: &Value) -> Result<&Map<String, Value>> {
    value.as_object().context("not a mapping")
}

/// A plain value as text, as CloudFormation hands numbers and truth values on.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// YAML as JSON, with tags written out as functions.
fn written_out(node: &YamlOwned) -> Result<Value> {
    Ok(match node {
        YamlOwned::Value(scalar) => match scalar {
            ScalarOwned::Null => Value::Null,
            ScalarOwned::Boolean(value) => (*value).into(),
            ScalarOwned::Integer(value) => (*value).into(),
            ScalarOwned::String(value) => value.as_str().into(),
            ScalarOwned::FloatingPoint(value) => bail!("a number with a fraction: {value}"),
        },
        YamlOwned::Sequence(list) => list.iter().map(written_out).collect::<Result<_>>()?,
        YamlOwned::Mapping(members) => {
            let mut object = Map::new();
            for (name, member) in members {
                let name = text(&written_out(name)?);
                let member = written_out(member)?;
                ensure!(object.insert(name.clone(), member).is_none(), "{name} is there twice");
            }
            Value::Object(object)
        }
        YamlOwned::Tagged(tag, node) => {
            let argument = written_out(node)?;
            match tag.suffix.as_str() {
                name @ ("Ref" | "Condition") => json!({ name: argument }),
                "GetAtt" => {
                    let path = text(&argument);
                    let (resource, attribute) = path.split_once('.').context("!GetAtt of what?")?;
                    json!({ "Fn::GetAtt": [resource, attribute] })
                }
                name => json!({ format!("Fn::{name}"): argument }),
            }
        }
        other => bail!("YAML that templates have not: {other:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
Parameters:
  Name: {Type: String, Default: ""}
  Kind: {Type: String, Default: a, AllowedValues: [a, b]}
Conditions:
  Named: !Not [!Equals [!Ref Name, ""]]
  Both: !And [!Condition Named, !Or [!Equals [!Ref Kind, a], !Equals [!Ref Kind, c]]]
Resources:
  Always:
    Type: T
    Properties:
      Text: !Sub ["${Name}-${X}-${!shell}-${AWS::Region}", {X: !Join [",", [!If [Named, 1, !Ref AWS::NoValue], two]]}]
      Part: !Select [1, !Split ["/", a/b/c]]
      Gone: !If [Named, here, !Ref AWS::NoValue]
  Sometimes: {Type: U, Condition: Both, Properties: {Of: !Ref Always}}
Outputs:
  Sometimes: {Condition: Both, Value: !Ref Sometimes}
"#;

    fn render(given: &[(&str, &str)]) -> Result<Rendered> {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Template::parse(TEXT)?.render("stack", &given.collect())
    }

    #[test]
    fn conditions_choose_what_is_made() {
        let without = render(&[]).expect("renders");
        assert_eq!(without.property("Always", "/Text"), "-two-${shell}-us-east-1");
        assert_eq!(without.property("Always", "/Part"), "b");
        assert_eq!(without.property("Always", "/Gone"), &Value::Null);
        assert!(!without.resources.contains_key("Sometimes") && without.outputs.is_empty());
        let with = render(&[("Name", "x")]).expect("renders");
        assert_eq!(with.property("Always", "/Text"), "x-1,two-${shell}-us-east-1");
        assert_eq!(with.of_type("U").count(), 1);
        assert_eq!(with.outputs.len(), 1);
        assert_eq!(render(&[("Name", "x"), ("Kind", "b")]).expect("renders").outputs.len(), 0);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(render(&[("Other", "x")]).is_err());
        assert!(render(&[("Kind", "c")]).is_err());
        for resource in ["!ImportValue x", "!Ref Nobody", "!Ref Sometimes", "!GetAtt Always.Shape"]
        {
            let text = TEXT.replace("Gone: !If [Named, here, !Ref AWS::NoValue]", "Gone: @");
            let template = Template::parse(&text.replace('@', resource)).expect("a template");
            assert!(template.render("stack", &BTreeMap::new()).is_err(), "{resource}");
        }
        assert!(Template::parse("a: [").is_err());
        assert!(Template::parse("Resources: {A: {Type: T}, A: {Type: T}}").is_err());
    }
}
