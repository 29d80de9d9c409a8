//! The list of mutants: its format, and what a mutant makes of a source. The head of the list says
//! what its lines mean.

/// A bug to plant.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Mutant {
    /// What goes wrong.
    pub(crate) name: String,
    /// The file to change, from the root of the workspace.
    pub(crate) file: String,
    /// The test that must fail.
    pub(crate) test: String,
    find: Vec<String>,
    replace: Vec<String>,
}

impl Mutant {
    /// Returns `source` with the bug.
    ///
    /// # Errors
    ///
    /// A sentence, unless the text to find occurs exactly once and the bug changes it.
    pub(crate) fn apply(&self, source: &str) -> Result<String, String> {
        let (find, replace) = (self.find.join("\n"), self.replace.join("\n"));
        let places = source.char_indices().filter_map(|(start, _)| {
            let len = len_of_match(&source[start..], &find)?;
            Some(start..start + len)
        });
        let places: Vec<_> = places.collect();
        let [place] = &places[..] else {
            let count = places.len();
            return Err(format!("its text occurs {count} times in {}", self.file));
        };
        let mut changed = source.to_owned();
        changed.replace_range(place.clone(), &replace);
        if changed == source {
            return Err("it changes nothing".to_owned());
        }
        Ok(changed)
    }

    /// Returns whether the name, the file or the test contains `filter`.
    pub(crate) fn matches(&self, filter: &str) -> bool {
        let texts = [&self.name, &self.file, &self.test];
        texts.into_iter().any(|text| text.contains(filter))
    }

    /// Reads a line into its field.
    fn read(&mut self, line: &str) -> Result<(), String> {
        if let Some(text) = line.strip_prefix('-') {
            if !self.replace.is_empty() {
                return Err("the text to find stands above its replacement".to_owned());
            }
            self.find.push(unpadded(text));
        } else if let Some(text) = line.strip_prefix('+') {
            self.replace.push(unpadded(text));
        } else {
            let (key, value) = line
                .split_once(':')
                .ok_or_else(|| format!("`{line}` is neither a field nor text"))?;
            let field = match key {
                "mutant" => &mut self.name,
                "file" => &mut self.file,
                "test" => &mut self.test,
                _ => return Err(format!("`{key}` is no field")),
            };
            if !field.is_empty() {
                return Err(format!(
                    "a second `{key}`: is the empty line above missing?"
                ));
            }
            value.trim().clone_into(field);
        }
        Ok(())
    }

    fn check(self) -> Result<Self, String> {
        let fields = [
            ("mutant", &self.name),
            ("file", &self.file),
            ("test", &self.test),
        ];
        if let Some((key, _)) = fields.into_iter().find(|(_, value)| value.is_empty()) {
            return Err(format!("the mutant above has no `{key}`"));
        }
        if self.find.iter().all(|line| line.trim().is_empty()) {
            return Err("the mutant above has no text to find".to_owned());
        }
        // The change stays inside the copy of the workspace.
        if self.file.starts_with('/') || self.file.split('/').any(|part| part == "..") {
            return Err(format!("`{}` leaves the workspace", self.file));
        }
        Ok(self)
    }
}

/// Returns the length of what `text` starts with if that is `find` but for white space, which moves
/// when code is laid out anew.
fn len_of_match(text: &str, find: &str) -> Option<usize> {
    let mut wanted = find.chars().filter(|c| !c.is_whitespace());
    let found = text.char_indices().filter(|(_, c)| !c.is_whitespace());
    let mut len = 0;
    for (at, c) in found {
        match wanted.next() {
            // It starts at its first character, so that it is found once.
            Some(next) if next == c && (at == 0 || len > 0) => len = at + c.len_utf8(),
            Some(_) => return None,
            None => break,
        }
    }
    wanted.next().is_none().then_some(len)
}

/// Takes the space between a mark and the text away.
fn unpadded(text: &str) -> String {
    text.strip_prefix(' ').unwrap_or(text).to_owned()
}

/// Reads a list.
///
/// # Errors
///
/// A sentence with the number of the line where the list is wrong.
pub(crate) fn parse(list: &str) -> Result<Vec<Mutant>, String> {
    let mut mutants = Vec::new();
    let mut current = None::<Mutant>;
    // An empty line at the end closes the last mutant.
    for (index, line) in list.lines().chain([""]).enumerate() {
        let at = |text| format!("line {}: {text}", index + 1);
        if line.trim().is_empty() {
            if let Some(mutant) = current.take() {
                mutants.push(mutant.check().map_err(at)?);
            }
        } else if !line.starts_with('#') {
            current.get_or_insert_default().read(line).map_err(at)?;
        }
    }
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# A comment.

mutant: a weak store
file: engine/src/a.rs
test: a::models::b
- store(1, Release);
+ store(1, Relaxed);

mutant: no check
file: engine/src/a.rs
test: a::models::c
# Of two lines.
- if a {
-     b();
";

    #[test]
    fn a_mutant_replaces_its_text() {
        let mutants = parse(LIST).unwrap();
        let [weak, unchecked] = &mutants[..] else {
            panic!("{mutants:?}");
        };
        let source = "fn f() {\n    store(1, Release);\n    if a {\n    b();\n}\n";
        assert_eq!(
            weak.apply(source).unwrap(),
            source.replace("Release", "Relaxed")
        );
        assert_eq!(
            unchecked.apply(source).unwrap(),
            "fn f() {\n    store(1, Release);\n    \n}\n"
        );
        // However it is laid out.
        assert_eq!(
            weak.apply("a.store(\n    1, Release);").unwrap(),
            "a.store(1, Relaxed);"
        );
        assert_eq!(weak.test, "a::models::b");
        assert_eq!(unchecked.file, "engine/src/a.rs");
    }

    #[test]
    fn text_that_is_missing_or_ambiguous_does_not_apply() {
        let mutant = &parse(LIST).unwrap()[0];
        for source in [
            "",
            "store(1, Release)",
            "store(1, Releases);",
            "store(1, Relaxed);",
            "store(1, Release); store(1, Release);",
        ] {
            mutant.apply(source).unwrap_err();
        }
        let idle = Mutant {
            replace: mutant.find.clone(),
            ..mutant.clone()
        };
        idle.apply("store(1, Release);").unwrap_err();
    }

    #[test]
    fn a_filter_looks_at_names_files_and_tests() {
        let mutants = parse(LIST).unwrap();
        let count = |filter| mutants.iter().filter(|m| m.matches(filter)).count();
        assert_eq!(
            ["weak", "a.rs", "models::c", "none"].map(count),
            [1, 2, 1, 0]
        );
    }

    #[test]
    fn a_wrong_list_is_refused_with_the_line() {
        let whole = "mutant: a\nfile: b\ntest: c\n- d";
        assert_eq!(parse(whole).unwrap().len(), 1);
        for (wrong, line) in [
            ("file: b\ntest: c\n- d".to_owned(), 4),
            ("mutant: a\ntest: c\n- d\n".to_owned(), 4),
            ("mutant: a\nfile: b\n- d\n\n\n".to_owned(), 4),
            ("mutant: a\nfile: b\ntest: c\n+ d".to_owned(), 5),
            (format!("{whole}\n+ e\n- f"), 6),
            (format!("{whole}\n{whole}"), 5),
            (format!("{whole}\nnote: e"), 5),
            (format!("{whole}\ne"), 5),
            (whole.replace("file: b", "file: a/../../b"), 5),
            (whole.replace("file: b", "file: /b"), 5),
        ] {
            let error = parse(&wrong).unwrap_err();
            assert!(
                error.starts_with(&format!("line {line}: ")),
                "{wrong}: {error}"
            );
        }
    }

    /// A change of the engine that takes a mutant's text away shows at once, not only when the
    /// mutants are run.
    #[test]
    fn every_mutant_of_the_project_applies() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
        let list = std::fs::read_to_string(format!("{root}{}", crate::mutants::LIST)).unwrap();
        for mutant in parse(&list).unwrap() {
            let source = std::fs::read_to_string(format!("{root}{}", mutant.file)).unwrap();
            mutant
                .apply(&source)
                .unwrap_or_else(|error| panic!("{}: {error}", mutant.name));
        }
    }
}
