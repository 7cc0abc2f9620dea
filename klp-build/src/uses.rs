//! Who has objects of a type: functions that are replaced, or anything that lives on.

use crate::debug_types::{Reach, Types};
use gimli::constants as dw;
use std::collections::BTreeSet;

/// A type by its name; in C, with its source file.
pub(crate) type Key = (String, String);

/// The debug information of one build.
pub(crate) struct Build<'a> {
    pub(crate) types: Types<'a>,
    /// The functions that are replaced, or replace them.
    pub(crate) going_in: BTreeSet<usize>,
}

impl Build<'_> {
    /// The types of which there may be objects beside the variables of functions that are replaced.
    pub(crate) fn live(&self) -> BTreeSet<Key> {
        let staying = self.staying();
        let (types, entries) = (&self.types, self.types.entries);
        let defined: BTreeSet<_> = (0..entries.all.len())
            .filter(|entry| !entries.all[*entry].is_declaration)
            .flat_map(|entry| entries.origins(entry).skip(1))
            .collect();
        let mut live = BTreeSet::new();
        let mut parts = Vec::new();
        for (index, entry) in entries.all.iter().enumerate() {
            if let Some(container) = entry.container {
                live.insert(key(types, container));
            }
            let Some((of, reach)) = self.mentioned(index) else {
                continue;
            };
            let holder = entries.owner(index);
            let is_live = match holder.map(|holder| (holder, entries.all[holder].tag)) {
                Some((function, dw::DW_TAG_subprogram)) => {
                    let is_elsewhere = entries.all[function].is_declaration;
                    let stays =
                        is_elsewhere && !defined.contains(&function) || staying.contains(&function);
                    let mut origins = entries.origins(function);
                    let is_external = origins.any(|origin| entries.all[origin].is_external);
                    // Of Rust's functions, many are external which nobody else can call.
                    let has_callers = is_external && !key(types, of).1.contains("{closure");
                    match (entry.tag, reach) {
                        // It has objects only if variables have.
                        (dw::DW_TAG_template_type_parameter, _) => false,
                        // Callers have what they hand over, or get.
                        (dw::DW_TAG_formal_parameter, Reach::Borrowed | Reach::Pointer) => {
                            has_callers
                        }
                        (dw::DW_TAG_formal_parameter | dw::DW_TAG_subprogram, _) if has_callers => {
                            true
                        }
                        (_, Reach::Itself) => stays || entry.is_static,
                        _ => reach > Reach::Borrowed || entry.is_static,
                    }
                }
                Some((holder, _)) => {
                    if reach == Reach::Itself {
                        parts.push((key(types, holder), key(types, of)));
                    }
                    reach > Reach::Borrowed
                }
                None => true,
            };
            if is_live {
                live.insert(key(types, of));
            }
        }
        loop {
            let more = parts
                .iter()
                .filter(|(whole, part)| live.contains(whole) && !live.contains(part));
            let more: Vec<_> = more.map(|(_, part)| part.clone()).collect();
            if more.is_empty() {
                return live;
            }
            live.extend(more);
        }
    }

    /// The functions that have code which is not replaced, inlined code too.
    fn staying(&self) -> BTreeSet<usize> {
        let entries = self.types.entries;
        let functions = entries.functions.values();
        let mut staying: BTreeSet<_> = functions
            .filter(|function| !self.going_in.contains(function))
            .flat_map(|function| entries.origins(*function))
            .collect();
        let mut inlined = BTreeSet::new();
        for (index, entry) in entries.all.iter().enumerate() {
            if entry.tag == dw::DW_TAG_inlined_subroutine {
                let function = entries.owner(index);
                if function.is_none_or(|function| staying.contains(&function)) {
                    inlined.extend(entries.origins(index));
                }
            }
        }
        staying.extend(inlined);
        staying
    }

    /// The type that an entry which may have objects, or a part of one, is of.
    fn mentioned(&self, entry: usize) -> Option<(usize, Reach)> {
        let entries = self.types.entries;
        let each = &entries.all[entry];
        let has_type = [
            dw::DW_TAG_variable,
            dw::DW_TAG_formal_parameter,
            dw::DW_TAG_member,
            dw::DW_TAG_inheritance,
            dw::DW_TAG_template_type_parameter,
            dw::DW_TAG_subprogram,
        ];
        if !has_type.contains(&each.tag) {
            return None;
        }
        let origin = &entries.all[entries.origin(entry)];
        self.types.aggregate(each.of_type.or(origin.of_type))
    }

    /// The functions that go in and mention a type, or one that leads to it.
    pub(crate) fn users(&self, of: &Key) -> Vec<String> {
        let entries = self.types.entries;
        let mut mentions = Vec::new();
        for index in 0..entries.all.len() {
            if let (Some((to, _)), Some(from)) = (self.mentioned(index), entries.owner(index)) {
                mentions.push((from, to));
            }
        }
        let is_type = |entry: usize| self.types.is_aggregate(entry);
        let mut leading: BTreeSet<_> = (0..entries.all.len())
            .filter(|entry| is_type(*entry) && key(&self.types, *entry).1 == of.1)
            .collect();
        loop {
            let more = mentions
                .iter()
                .filter(|(from, to)| is_type(*from) && leading.contains(to));
            let more: Vec<_> = more.map(|(from, _)| *from).collect();
            let known = leading.len();
            leading.extend(more);
            if leading.len() == known {
                break;
            }
        }
        let users = mentions
            .iter()
            .filter(|(from, to)| self.going_in.contains(from) && leading.contains(to));
        let users = users.filter_map(|(function, _)| entries.name(*function));
        let users: BTreeSet<_> = users.map(str::to_owned).collect();
        users.into_iter().collect()
    }

    /// The types that are known to exist, and no more.
    pub(crate) fn declared(&self) -> impl Iterator<Item = String> + '_ {
        let types = &self.types;
        let declared = (0..types.entries.all.len()).filter(|entry| types.is_mere_name(*entry));
        declared.map(|entry| types.full_name(entry))
    }
}

/// The key of the type that `entry` is about.
pub(crate) fn key(types: &Types, entry: usize) -> Key {
    let entries = types.entries;
    let unit = entries.all[entries.unit(entry)].name.as_deref();
    let source = unit
        .filter(|_| types.is_c(entry))
        .map_or("", last_component);
    (source.to_owned(), types.full_name(entry))
}

pub(crate) fn last_component(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
