//! What a patch object contains, in words.

use super::{Contents, SignatureSaid};
use std::fmt::{self, Write};

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text)?;
        f.write_str(&harmless(&text))
    }
}

impl Contents {
    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "patch '{}', {}", self.name, self.machine)?;
        match &self.signature {
            None => writeln!(out, "    not signed")?,
            Some(SignatureSaid::Key(key)) => {
                writeln!(out, "    signed with key {key} (not verified)")?;
            }
            Some(SignatureSaid::Damaged(why)) => writeln!(out, "    {why}")?,
        }
        for (what, texts) in [
            ("label", &self.labels),
            ("description", &self.descriptions),
            ("author", &self.authors),
        ] {
            for text in texts {
                writeln!(out, "    {what}: {text}")?;
            }
        }
        for on in &self.depends {
            writeln!(out, "    depends on the patch '{on}'")?;
        }
        match &self.replace {
            None => {}
            Some(set) if set == "all" => writeln!(out, "    takes the place of all patches")?,
            Some(set) => writeln!(out, "    takes the place of the patches of {set}")?,
        }
        for state in &self.states {
            writeln!(out, "    state {}, version {}", state.id, state.version)?;
        }
        for object in &self.objects {
            let build = match (&object.build_id, &object.code) {
                (None, None) => "any build".to_owned(),
                (Some(id), None) => format!("build-id {id}"),
                (None, Some(code)) => format!("code {code}"),
                (Some(id), Some(code)) => format!("build-id {id}, code {code}"),
            };
            writeln!(out, "object '{}', {build}", object.name)?;
            for function in &object.functions {
                let new = &function.replacement;
                let old = function.old_code.as_ref();
                let old = old.map_or(String::new(), |old| {
                    format!(", {}, {}", bytes(old.size), old.digest)
                });
                writeln!(
                    out,
                    "    {}{old} becomes {}, {}",
                    place(&function.name, function.position),
                    new.name,
                    bytes(new.size)
                )?;
            }
            if !object.callbacks.is_empty() {
                writeln!(out, "    callbacks: {}", object.callbacks.join(", "))?;
            }
        }
        if !self.other_functions.is_empty() {
            writeln!(out, "other code")?;
        }
        for code in &self.other_functions {
            let part = code.part_of.as_deref();
            let part = part.map_or(String::new(), |of| format!(", a part of {of}"));
            writeln!(out, "    {}, {}{part}", code.name, bytes(code.size))?;
        }
        for (object, symbols) in &self.symbols {
            writeln!(out, "uses of '{object}'")?;
            for symbol in symbols {
                let place = place(&symbol.name, symbol.position);
                let count = symbol.relocations;
                let s = if count == 1 { "" } else { "s" };
                writeln!(out, "    {place}, {count} relocation{s}")?;
            }
        }
        if !self.imports.is_empty() {
            writeln!(out, "uses of what is exported")?;
        }
        for name in &self.imports {
            writeln!(out, "    {name}")?;
        }
        if self.shadow_variables {
            writeln!(out, "uses shadow variables")?;
        }
        Ok(())
    }
}

/// A symbol, as `NAME` or `NAME,POSITION`.
fn place(name: &str, position: u32) -> String {
    match position {
        0 => name.to_owned(),
        position => format!("{name},{position}"),
    }
}

fn bytes(count: u64) -> String {
    format!("{count} byte{}", if count == 1 { "" } else { "s" })
}

/// The text with what a terminal would obey, or show in a misleading order, written out: whoever
/// made the file chose the names.
fn harmless(text: &str) -> String {
    let mut safe = String::new();
    for character in text.chars() {
        match character {
            '\n' | '\'' | '"' | '\\' => safe.push(character),
            _ => safe.extend(character.escape_debug()),
        }
    }
    safe
}
