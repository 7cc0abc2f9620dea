//! The types that debug information describes: their names, their layouts, and what of them others
//! have in themselves.

use crate::debug::Entries;
use crate::layout::{Layout, Part, PartKind};
use core::cell::Cell;
use gimli::constants as dw;

/// Types are nested no deeper than this; what is deeper goes round in a circle.
const DEEPEST: u32 = 64;

/// No type needs more.
const MOST_STEPS: u32 = 1_000_000;

/// How a type is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    /// As people do.
    People,
    /// The same for types that mean the same: without `typedef`s, and numbers by their sizes.
    Key,
}

/// Debug information goes round in a circle.
#[derive(Debug)]
pub(crate) struct Circle;

type Result<T> = core::result::Result<T, Circle>;

/// The types that entries describe.
#[derive(Debug)]
pub(crate) struct Types<'a> {
    pub(crate) entries: &'a Entries<'a>,
    /// The `typedef` that gives a type without a name one, for each entry.
    aliases: Vec<Option<usize>>,
    /// How many more entries may be looked at for one layout: types without a name that contain
    /// others may be damaged so that there is no end to it.
    steps: Cell<u32>,
}

impl<'a> Types<'a> {
    pub(crate) fn new(entries: &'a Entries<'a>) -> Self {
        let mut aliases = vec![None; entries.all.len()];
        for (index, entry) in entries.all.iter().enumerate() {
            if let (dw::DW_TAG_typedef, Some(of)) = (entry.tag, entry.of_type) {
                if entries.name(of).is_none() {
                    aliases[of].get_or_insert(index);
                }
            }
        }
        let steps = Cell::new(MOST_STEPS);
        Self {
            entries,
            aliases,
            steps,
        }
    }

    /// Whether `entry` defines a type whose layout counts, and which has a name.
    pub(crate) fn is_definition(&self, entry: usize) -> bool {
        let each = &self.entries.all[entry];
        let is_whole = is_aggregate(each.tag) && !each.is_declaration && !self.is_variant(entry);
        is_whole && self.own_name(entry).is_some()
    }

    /// Whether it is what an enumeration of Rust's has in itself for one of its variants.
    fn is_variant(&self, entry: usize) -> bool {
        let parent = self.entries.all[entry].parent;
        self.is_rust(entry) && is_aggregate(self.entries.all[parent].tag)
    }

    /// Whether `entry` is a structure, a class, a union, or an enumeration, declared or defined.
    pub(crate) fn is_aggregate(&self, entry: usize) -> bool {
        is_aggregate(self.entries.all[entry].tag)
    }

    /// Whether `entry` declares a type that nothing here defines.
    pub(crate) fn is_mere_name(&self, entry: usize) -> bool {
        let each = &self.entries.all[entry];
        let is_declared = is_aggregate(each.tag) && each.is_declaration;
        is_declared && self.entries.all[self.entries.origin(entry)].is_declaration
    }

    fn own_name(&self, entry: usize) -> Option<&str> {
        let own = self.entries.name(entry);
        own.or_else(|| self.entries.name(self.aliases[entry]?))
    }

    /// The type's name with all that it is in, as `struct shop` or `shop::Visit`.
    pub(crate) fn full_name(&self, entry: usize) -> String {
        let mut name = self.own_name(entry).unwrap_or("{anonymous}").to_owned();
        let tag = self.entries.all[entry].tag;
        let mut at = self.entries.origin(entry);
        for _ in 0..DEEPEST {
            let parent = &self.entries.all[at];
            if parent.parent == at {
                break;
            }
            at = parent.parent;
            let outer = &self.entries.all[at];
            match outer.tag {
                dw::DW_TAG_subprogram => {
                    let function = self.entries.name(at).unwrap_or("{anonymous}");
                    name = format!("{function}()::{name}");
                }
                dw::DW_TAG_namespace => {
                    let space = outer.name.as_deref().unwrap_or("{anonymous}");
                    name = format!("{space}::{name}");
                }
                // In C, what is declared in a structure is not of it.
                tag if is_aggregate(tag) && !self.is_c(at) => {
                    let outer = self.own_name(at).unwrap_or("{anonymous}");
                    name = format!("{outer}::{name}");
                }
                _ => {}
            }
        }
        let is_alias = self.entries.name(entry).is_none();
        match tag {
            _ if is_alias || !self.is_c(entry) => name,
            dw::DW_TAG_union_type => format!("union {name}"),
            dw::DW_TAG_enumeration_type => format!("enum {name}"),
            _ => format!("struct {name}"),
        }
    }

    /// Whether the unit of `entry` is in C: there each file may have its own types of one name.
    pub(crate) fn is_c(&self, entry: usize) -> bool {
        let unit = &self.entries.all[self.entries.unit(entry)];
        let c = [
            dw::DW_LANG_C,
            dw::DW_LANG_C89,
            dw::DW_LANG_C99,
            dw::DW_LANG_C11,
            dw::DW_LANG_C17,
        ];
        unit.language.is_some_and(|language| c.contains(&language))
    }

    pub(crate) fn is_rust(&self, entry: usize) -> bool {
        self.entries.all[self.entries.unit(entry)].language == Some(dw::DW_LANG_Rust)
    }

    /// The structure, class, union or enumeration that something of type `of` has in itself, and
    /// whether it has no more than a pointer to it.
    pub(crate) fn aggregate(&self, of: Option<usize>) -> Option<(usize, Reach)> {
        let (mut at, mut reach) = (of?, Reach::Itself);
        for _ in 0..DEEPEST {
            let entry = &self.entries.all[at];
            match entry.tag {
                tag if is_aggregate(tag) => return Some((self.defined(at), reach)),
                dw::DW_TAG_reference_type
                | dw::DW_TAG_rvalue_reference_type
                | dw::DW_TAG_pointer_type => {
                    let is_borrowed = self.is_rust(at)
                        && entry
                            .name
                            .as_ref()
                            .is_some_and(|name| name.starts_with('&'));
                    reach = reach.max(if is_borrowed {
                        Reach::Borrowed
                    } else {
                        Reach::Pointer
                    });
                }
                _ => {}
            }
            at = entry.of_type?;
        }
        None
    }

    /// The definition of a type that is only declared, if there is one.
    fn defined(&self, entry: usize) -> usize {
        if self.entries.all[entry].is_declaration {
            self.entries.origin(entry)
        } else {
            entry
        }
    }

    /// The layout of the type that `entry` defines.
    pub(crate) fn layout(&self, entry: usize) -> Result<Layout> {
        self.steps.set(MOST_STEPS);
        let mut layout = Layout {
            size: self.entries.all[entry].size,
            align: self.entries.all[entry].align,
            parts: Vec::new(),
            is_open: !self.is_rust(entry),
            file: self.entries.all[entry].file.as_deref().map(str::to_owned),
        };
        self.add_parts(entry, "", 0, 0, &mut layout.parts)?;
        Ok(layout)
    }

    /// Adds what is in `entry`, which is `base` bits from the start of the whole, and is called
    /// `prefix` there.
    fn add_parts(
        &self,
        entry: usize,
        prefix: &str,
        base: i128,
        depth: u32,
        parts: &mut Vec<Part>,
    ) -> Result<()> {
        self.step(depth)?;
        for child in self.entries.children(entry) {
            let each = &self.entries.all[child];
            let name = each.name.as_deref().unwrap_or("");
            let mut part = Part {
                name: format!("{prefix}{name}"),
                kind: PartKind::Member,
                at: each.at.map(|at| base + i128::from(at)),
                bits: each.bits,
                key: String::new(),
                shown: String::new(),
                holds: None,
            };
            match each.tag {
                // A static one is a variable.
                dw::DW_TAG_member if each.is_external || each.is_declaration => continue,
                dw::DW_TAG_member => {
                    // Of a union, DWARF need not say it.
                    part.at = Some(base + i128::from(each.at.unwrap_or(0)));
                    if let Some(inner) = self.inline(each.of_type) {
                        let inside = match name {
                            "" => prefix.to_owned(),
                            name => format!("{prefix}{name}."),
                        };
                        let base = part.at.unwrap_or(base);
                        self.add_parts(inner, &inside, base, depth + 1, parts)?;
                        continue;
                    }
                }
                dw::DW_TAG_inheritance => {
                    part.kind = PartKind::Base;
                    part.name = self.spell(each.of_type, Style::People, depth + 1)?;
                }
                dw::DW_TAG_enumerator => {
                    part.kind = PartKind::Value;
                    part.at = each.value;
                }
                dw::DW_TAG_subprogram if each.slot.is_some() && !each.is_artificial => {
                    part.kind = PartKind::Virtual;
                    part.at = each.slot.map(i128::from);
                    let arguments = self.arguments(child, Style::Key, depth + 1)?.join(", ");
                    part.name = format!("{name}({arguments})");
                }
                // Of Rust's enumerations: each variant is told by a number.
                dw::DW_TAG_variant_part => {
                    self.add_parts(child, prefix, base, depth + 1, parts)?;
                    continue;
                }
                dw::DW_TAG_variant => {
                    let before = parts.len();
                    self.add_parts(child, prefix, base, depth + 1, parts)?;
                    let told = each.value.map(|value| format!(" if {value}"));
                    for part in &mut parts[before..] {
                        part.key += told.as_deref().unwrap_or(" otherwise");
                    }
                    continue;
                }
                _ => continue,
            }
            if part.kind != PartKind::Virtual {
                part.key = self.spell(each.of_type, Style::Key, depth + 1)?;
                part.shown = self.spell(each.of_type, Style::People, depth + 1)?;
                let held = self.aggregate(each.of_type);
                let held = held.filter(|(_, reach)| *reach == Reach::Itself);
                part.holds = held.map(|(held, _)| self.full_name(held));
            }
            parts.push(part);
        }
        Ok(())
    }

    /// The structure or union without a name, or of a variant, that a member of that type has in itself.
    fn inline(&self, of: Option<usize>) -> Option<usize> {
        let mut at = of?;
        for _ in 0..DEEPEST {
            let entry = &self.entries.all[at];
            match entry.tag {
                dw::DW_TAG_structure_type | dw::DW_TAG_class_type | dw::DW_TAG_union_type => {
                    let is_part = self.own_name(at).is_none() || self.is_variant(at);
                    return (is_part && !entry.is_declaration).then_some(at);
                }
                dw::DW_TAG_const_type | dw::DW_TAG_volatile_type => at = entry.of_type?,
                _ => return None,
            }
        }
        None
    }

    fn step(&self, depth: u32) -> Result<()> {
        let left = self.steps.get().checked_sub(1).filter(|_| depth <= DEEPEST);
        self.steps.set(left.ok_or(Circle)?);
        Ok(())
    }

    /// How a function is called: the type of what it returns, and those of its parameters, as far
    /// as its callers' code depends on them.
    pub(crate) fn prototype(&self, function: usize) -> Result<(String, Vec<String>)> {
        self.steps.set(MOST_STEPS);
        let origin = self.entries.origin(function);
        let of_type = self.entries.all[function].of_type;
        let returned = of_type.or(self.entries.all[origin].of_type);
        let returned = self.spell(returned, Style::Key, 0)?;
        let arguments = self.arguments(function, Style::Key, 0)?;
        let arguments = arguments.iter().map(|argument| passed(argument));
        Ok((passed(&returned), arguments.collect()))
    }

    fn arguments(&self, function: usize, style: Style, depth: u32) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        for child in self.entries.children(function) {
            let each = &self.entries.all[child];
            match each.tag {
                dw::DW_TAG_formal_parameter => {
                    let origin = &self.entries.all[self.entries.origin(child)];
                    let of_type = each.of_type.or(origin.of_type);
                    arguments.push(self.spell(of_type, style, depth + 1)?);
                }
                dw::DW_TAG_unspecified_parameters => arguments.push("...".to_owned()),
                _ => {}
            }
        }
        Ok(arguments)
    }

    /// Writes the type `of`; what others point to, by its name alone.
    fn spell(&self, of: Option<usize>, style: Style, depth: u32) -> Result<String> {
        self.step(depth)?;
        let Some(at) = of else {
            return Ok("void".to_owned());
        };
        let entry = &self.entries.all[at];
        let inner = |depth| self.spell(entry.of_type, style, depth + 1);
        Ok(match entry.tag {
            dw::DW_TAG_base_type => match (style, entry.encoding, entry.size, &entry.name) {
                (Style::Key, Some(encoding), Some(size), _) => format!("#{encoding}:{size}"),
                (.., Some(name)) => name.clone().into_owned(),
                _ => "{anonymous}".to_owned(),
            },
            dw::DW_TAG_typedef => match (style, &entry.name) {
                (Style::People, Some(name)) => name.clone().into_owned(),
                _ => inner(depth)?,
            },
            dw::DW_TAG_const_type | dw::DW_TAG_volatile_type | dw::DW_TAG_restrict_type => {
                inner(depth)?
            }
            tag if is_aggregate(tag) && self.own_name(at).is_some() => self.full_name(at),
            tag if is_aggregate(tag) && style == Style::Key => {
                let mut parts = Vec::new();
                self.add_parts(at, "", 0, depth + 1, &mut parts)?;
                format!("{{{:?} {parts:?}}}", entry.size)
            }
            tag if is_aggregate(tag) => "{...}".to_owned(),
            dw::DW_TAG_array_type => {
                let mut array = inner(depth)?;
                for child in self.entries.children(at) {
                    let count = self.entries.all[child].count;
                    let count = count.map(|count| count.to_string()).unwrap_or_default();
                    array += &format!("[{count}]");
                }
                array
            }
            dw::DW_TAG_subroutine_type => {
                let arguments = self.arguments(at, style, depth + 1)?.join(", ");
                format!("{}({arguments})", inner(depth)?)
            }
            dw::DW_TAG_pointer_type => match &entry.name {
                // Rust's have names, which say more.
                Some(name) if style == Style::People => name.clone().into_owned(),
                _ => inner(depth)? + "*",
            },
            dw::DW_TAG_reference_type => inner(depth)? + "&",
            dw::DW_TAG_rvalue_reference_type => inner(depth)? + "&&",
            dw::DW_TAG_ptr_to_member_type => inner(depth)? + "::*",
            dw::DW_TAG_unspecified_type => self.entries.name(at).unwrap_or("void").to_owned(),
            tag => format!("{tag} {}", inner(depth)?),
        })
    }
}

/// How something reaches an object: the later, the longer that may live.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Reach {
    /// It has the object in itself.
    Itself,
    /// By a reference of Rust's: another has the object.
    Borrowed,
    /// By a pointer: the object may be anywhere.
    Pointer,
}

fn is_aggregate(tag: gimli::DwTag) -> bool {
    [
        dw::DW_TAG_structure_type,
        dw::DW_TAG_class_type,
        dw::DW_TAG_union_type,
        dw::DW_TAG_enumeration_type,
    ]
    .contains(&tag)
}

/// How a value of that type is handed to a function: pointers are alike, and so are numbers of one
/// size, with a sign or without.
fn passed(key: &str) -> String {
    let number = ["#6:", "#7:", "#8:"].iter();
    let number = number.filter_map(|kind| key.strip_prefix(kind)).next();
    match number {
        _ if key.ends_with(['*', '&']) => "*".to_owned(),
        Some(size) => format!("#5:{size}"),
        None => key.to_owned(),
    }
}
