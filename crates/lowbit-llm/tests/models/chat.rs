//! Chat templates against transformers' renderings, and where they are found.

use std::fs;
use std::path::Path;

use lowbit_llm::chat::{ChatTemplate, Message, plain};
use lowbit_llm::{Result, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{golden_json, tinybard};

fn tokens(json: Value) -> Map<String, Value> {
    json.as_object().unwrap().clone()
}

fn compile(source: &str) -> Result<ChatTemplate> {
    ChatTemplate::compile(source, tokens(json!({ "bos_token": "<s>", "eos_token": "</s>" })))
}

fn render(source: &str) -> Result<String> {
    compile(source)?.render(&[Message::new("user", "Hello")], true, &Map::new())
}

#[test]
fn renderings_are_those_of_transformers() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        template: String,
        messages: Vec<Message>,
        add_generation_prompt: bool,
        rendered: String,
    }
    let cases: Vec<Case> = golden_json("chat.json");
    assert_eq!(cases.len(), 20);
    for case in cases {
        let template = compile(&case.template).unwrap();
        let text =
            template.render(&case.messages, case.add_generation_prompt, &Map::new()).unwrap();
        assert_eq!(text, case.rendered, "{}", case.name);
    }
}

#[test]
fn extra_variables_reach_the_template() {
    let template =
        compile("{% if enable_thinking is false %}no{% endif %}{{ eos_token }}").unwrap();
    let extra = tokens(json!({ "enable_thinking": false }));
    assert_eq!(template.render(&[], false, &extra).unwrap(), "no</s>");
}

#[test]
fn a_failing_template_is_one_clear_line() {
    for (source, word) in [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m.content", "unexpected"),
        ("{{ messages[0].content.nonsense() }}", "nonsense"),
        ("{{ unknown() }}", "unknown"),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}.{% endfor %}{% endfor %}",
            "fuel",
        ),
    ] {
        let error = render(source).unwrap_err().to_string();
        assert!(error.starts_with("chat template: ") && error.contains(word), "{source}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

/// tinybard's tokenizer with other settings and files beside it.
fn directory(config: Value, files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::copy(tinybard().join("tokenizer.json"), at("tokenizer.json")).unwrap();
    fs::write(at("tokenizer_config.json"), config.to_string()).unwrap();
    for (name, text) in files {
        fs::write(at(name), text).unwrap();
    }
    directory
}

fn open(directory: &Path) -> Result<Option<ChatTemplate>> {
    ChatTemplate::open(directory, &Tokenizer::open(directory)?)
}

#[test]
fn templates_are_found_where_transformers_looks() {
    let named = json!([{ "name": "tool_use", "template": "tool" },
                       { "name": "default", "template": "named" }]);
    let cases = [
        (
            json!({ "chat_template": "plain{{ eos_token }}", "eos_token": "</s>" }),
            &[][..],
            "plain</s>",
        ),
        (
            json!({ "chat_template": "{{ bos_token }}", "bos_token": { "content": "<s>" } }),
            &[],
            "<s>",
        ),
        (json!({ "chat_template": named }), &[], "named"),
        (json!({ "chat_template": "old" }), &[("chat_template.jinja", "file")], "file"),
    ];
    for (config, files, expected) in cases {
        let directory = directory(config, files);
        let template = open(directory.path()).unwrap().unwrap();
        assert_eq!(template.render(&[], false, &Map::new()).unwrap(), expected);
    }
    for bad in [json!({ "chat_template": 3 }), json!({ "chat_template": [{ "name": "x" }] })] {
        let error = open(directory(bad, &[]).path()).unwrap_err().to_string();
        assert!(error.contains("chat_template"), "{error}");
    }
}

#[test]
fn a_base_model_has_no_template_and_a_plain_form() {
    assert!(open(&tinybard()).unwrap().is_none());
    let turns = [Message::new("user", "KING:\n"), Message::new("assistant", "What say you?")];
    assert_eq!(plain(&turns), "KING:\n\nWhat say you?\n");
}
