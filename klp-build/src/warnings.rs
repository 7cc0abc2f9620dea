//! What is no reason to refuse a patch, but what its author should know.

use crate::calls;
use crate::compare::Pair;
use crate::layout::LayoutChange;
use crate::matches::Match;
use crate::select::Contents;
use crate::target::Target;
use crate::unit::{Home, Referent, Unit};
use core::fmt;
use object::elf;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Something about a patch that its author should know.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A function of the patch ends in a jump to another one that is replaced, too, in the original
    /// build or in the patched one (a sibling call).
    SiblingCall {
        /// The object file.
        file: PathBuf,
        /// The one that jumps.
        function: String,
        /// Where to.
        to: String,
    },
    /// The linker has made one function of several: all of them are replaced.
    Folded {
        /// The function that is meant.
        function: String,
        /// What else is called that.
        others: Vec<String>,
    },
    /// The compiler may have let callers rely on registers that the original leaves alone.
    InterproceduralRegisters {
        /// The object file.
        file: PathBuf,
        /// The function that is replaced.
        function: String,
        /// Callers that stay as they are.
        callers: Vec<String>,
    },
    /// A new function that nothing in the patch uses.
    Unused {
        /// The object file.
        file: PathBuf,
        /// The function.
        function: String,
    },
    /// A function that other object files may call takes or returns something else than before.
    Prototype {
        /// The object file.
        file: PathBuf,
        /// The function.
        function: String,
    },
    /// No types were compared, as there is no debug information.
    TypesNotCompared {
        /// The object files.
        files: Vec<PathBuf>,
    },
    /// A function is not in its file's debug information: nobody knows which types it uses.
    FunctionWithoutTypes {
        /// The object file.
        file: PathBuf,
        /// The function.
        function: String,
    },
    /// A type is used now that no object file of the original build defines: it is new, or was not
    /// compared.
    UnknownLayout {
        /// The object file.
        file: PathBuf,
        /// The type.
        name: String,
    },
    /// The layout of a type changed of which only functions of the patch have variables.
    LayoutOfVariables {
        /// The object file.
        file: PathBuf,
        /// The type.
        name: String,
        /// In what it differs.
        change: LayoutChange,
    },
    /// Somebody vouches for a type whose layout has not changed.
    VouchedInVain {
        /// The type.
        name: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SiblingCall { file, function, to } => write!(
                f,
                "{}: {function} ends in a jump to {to}, which is in the patch, too: threads do not \
                 switch themselves where {to} begins, so the transition may take longer \
                 (-fno-optimize-sibling-calls)",
                file.display()
            ),
            Self::Folded { function, others } => write!(
                f,
                "{function} shares its code with {}, as the target was linked: the patch replaces \
                 it for all of them (link without --icf)",
                others.join(", ")
            ),
            Self::InterproceduralRegisters {
                file,
                function,
                callers,
            } => write!(
                f,
                "{}: callers of {function} that stay as they are ({}) may rely on registers that \
                 only the original leaves alone: compile the program with -fno-ipa-ra",
                file.display(),
                callers.join(", ")
            ),
            Self::Unused { file, function } => write!(
                f,
                "{}: the new function {function} is in the patch, but nothing there uses it",
                file.display()
            ),
            Self::Prototype { file, function } => write!(
                f,
                "{}: {function} takes or returns something else than before: callers in object \
                 files that were not given call it as before",
                file.display()
            ),
            Self::TypesNotCompared { files } => {
                let files: Vec<_> = files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect();
                write!(
                    f,
                    "types were not compared in {}, as not both builds have debug information \
                     there (compile with -g)",
                    files.join(", ")
                )
            }
            Self::FunctionWithoutTypes { file, function } => write!(
                f,
                "{}: debug information does not mention {function}: the types that it uses were \
                 not compared",
                file.display()
            ),
            Self::UnknownLayout { file, name } => write!(
                f,
                "{}: no object file of the original build defines the type {name}: if it is not \
                 new, give all object files, so that its layout is compared",
                file.display()
            ),
            Self::LayoutOfVariables { file, name, change } => write!(
                f,
                "{}: the layout of the type {name} changed ({change}): only variables of functions \
                 in the patch are seen to have it",
                file.display()
            ),
            Self::VouchedInVain { name } => {
                write!(
                    f,
                    "no type {name} with another layout is used: nobody need vouch for it"
                )
            }
        }
    }
}

/// Warns of the functions of `contents`. `producers` says how their originals were compiled, by
/// pair and symbol of the patched build.
pub(crate) fn warnings(
    pairs: &[Pair],
    contents: &Contents,
    target: Option<&Target>,
    producers: &BTreeMap<(usize, usize), String>,
) -> Vec<Warning> {
    let mut warnings = sibling_calls(pairs, contents);
    warnings.extend(
        target
            .into_iter()
            .flat_map(|target| folded(pairs, contents, target)),
    );
    for (index, pair) in pairs.iter().enumerate() {
        let producers = producers.range((index, 0)..(index + 1, 0));
        let rely = producers.filter(|(_, producer)| lets_callers_rely(producer));
        let functions: BTreeSet<_> = rely.map(|((_, function), _)| *function).collect();
        warnings.extend(registers(pair, &functions));
    }
    warnings.extend(unused(pairs, contents));
    warnings
}

/// The functions of the patch that jump to others of it, in either build.
fn sibling_calls(pairs: &[Pair], contents: &Contents) -> Vec<Warning> {
    let globals: BTreeSet<&str> = contents
        .replaced
        .iter()
        .map(|replaced| &*replaced.old_name)
        .collect();
    let mut found = BTreeSet::new();
    for (index, pair) in pairs.iter().enumerate() {
        let taken = |symbol: &usize| {
            let section = pair.patched.section_of(*symbol);
            section.is_some_and(|section| contents.taken.contains_key(&(index, section)))
        };
        let in_patch: BTreeSet<_> = pair.patched.functions().filter(taken).collect();
        let old = in_patch
            .iter()
            .filter_map(|symbol| match pair.matches[*symbol] {
                Match::Same(old) => Some(old),
                Match::New | Match::Ambiguous(_) => None,
            });
        let old: BTreeSet<_> = old.collect();
        for (unit, functions) in [(&pair.original, old), (&pair.patched, in_patch)] {
            let jumps = functions.iter().flat_map(|from| {
                let from = *from;
                jumps(unit, from).map(move |to| (from, to))
            });
            for (from, to) in jumps {
                let whole = |symbol| unit.whole(symbol).unwrap_or(symbol);
                let (from, to) = (whole(from), whole(to));
                let target = &unit.symbols[to];
                let is_replaced = if target.is_local() {
                    functions.contains(&to) && globals.contains(&*target.name)
                } else {
                    globals.contains(&*target.name)
                };
                if from != to && is_replaced {
                    found.insert(Warning::SiblingCall {
                        file: pair.file.clone(),
                        function: unit.symbols[from].name.clone(),
                        to: target.name.clone(),
                    });
                }
            }
        }
    }
    found.into_iter().collect()
}

/// What the code of `function` jumps to.
fn jumps(unit: &Unit, function: usize) -> impl Iterator<Item = usize> + '_ {
    let section = unit
        .section_of(function)
        .map(|section| &unit.sections[section]);
    let symbol = &unit.symbols[function];
    let relocs = section.into_iter().flat_map(|section| {
        let relocs = section.relocs_in(symbol.value, symbol.len).iter();
        relocs.map(move |reloc| (section, reloc))
    });
    let machine = unit.header.machine;
    relocs.filter_map(move |(section, reloc)| {
        let is_jump = calls::is_jump(machine, section, reloc);
        match unit.referent(reloc) {
            Referent::Named { symbol, .. } if is_jump => Some(symbol),
            _ => None,
        }
    })
}

/// The functions whose code the target also has under names of other functions.
fn folded(pairs: &[Pair], contents: &Contents, target: &Target) -> Vec<Warning> {
    // Names that the sources give to one function are no surprise.
    let is_alias = |name: &str, other: &str| {
        pairs.iter().any(|pair| {
            let unit = &pair.original;
            let place = |name: &str| {
                let mut symbols = unit.symbols.iter();
                let symbol = symbols.find(|symbol| {
                    symbol.name == name && matches!(symbol.home, Home::Section(_))
                })?;
                Some((symbol.home, symbol.value))
            };
            place(name).is_some_and(|at| place(other) == Some(at))
        })
    };
    let folded = contents.replaced.iter().filter_map(|replaced| {
        let function = &replaced.old_name;
        let others = target.names_of_code(function, replaced.position);
        let others = others
            .iter()
            .filter(|other| *other != function && !is_alias(function, other));
        let others: Vec<_> = others.cloned().collect();
        let function = function.clone();
        (!others.is_empty()).then_some(Warning::Folded { function, others })
    });
    folded.collect()
}

/// Callers of those of `functions` that are replaced, which may rely on what registers the originals
/// change.
fn registers(pair: &Pair, functions: &BTreeSet<usize>) -> Vec<Warning> {
    let unit = &pair.patched;
    let machine = unit.header.machine;
    // GCC for ppc64le does not know which registers a call changes.
    if ![elf::EM_X86_64, elf::EM_AARCH64].contains(&machine) || functions.is_empty() {
        return Vec::new();
    }
    let mut callers = BTreeMap::<_, BTreeSet<_>>::new();
    for part in unit.functions() {
        let caller = unit.whole(part).unwrap_or(part);
        let stays = !pair.changed.contains(&caller);
        let Some(section) = unit.section_of(part).filter(|_| stays) else {
            continue;
        };
        let (section, symbol) = (&unit.sections[section], &unit.symbols[part]);
        for reloc in section.relocs_in(symbol.value, symbol.len) {
            let Referent::Named { symbol: callee, .. } = unit.referent(reloc) else {
                continue;
            };
            let is_call = callee != caller && calls::is_call(machine, section, reloc);
            if is_call && functions.contains(&callee) {
                let name = unit.symbols[caller].name.clone();
                callers.entry(callee).or_default().insert(name);
            }
        }
    }
    let warning =
        |(function, callers): (usize, BTreeSet<String>)| Warning::InterproceduralRegisters {
            file: pair.file.clone(),
            function: unit.symbols[function].name.clone(),
            callers: callers.into_iter().collect(),
        };
    callers.into_iter().map(warning).collect()
}

/// Whether the compiler, with these options, lets callers rely on registers that a function happens
/// to leave alone: GCC does from -O2 on, if nothing forbids it.
fn lets_callers_rely(producer: &str) -> bool {
    let mut options = producer.split(' ');
    let is_gcc = options.next() == Some("GNU");
    let (mut optimises, mut allowed, mut profiled) = (false, true, false);
    // The last one counts.
    for option in options {
        match option {
            "-fipa-ra" | "-fno-ipa-ra" => allowed = option == "-fipa-ra",
            "-p" | "-pg" => profiled = true,
            _ => {
                if let Some(level) = option.strip_prefix("-O") {
                    optimises = ["2", "3", "s", "z", "fast"].contains(&level);
                }
            }
        }
    }
    is_gcc && optimises && allowed && !profiled
}

/// The functions of the patch that none of those that are replaced leads to.
fn unused(pairs: &[Pair], contents: &Contents) -> Vec<Warning> {
    let home = |symbol: usize| match contents.symbols.get(symbol)?.home {
        Home::Section(section) => Some(section),
        Home::Outside | Home::Absolute | Home::Common => None,
    };
    let replaced = contents.replaced.iter();
    let mut open: Vec<_> = replaced
        .filter_map(|replaced| home(replaced.symbol))
        .collect();
    let mut used: BTreeSet<_> = open.iter().copied().collect();
    while let Some(section) = open.pop() {
        for reloc in &contents.sections[section].relocs {
            let to = home(reloc.symbol).filter(|to| used.insert(*to));
            open.extend(to);
        }
    }
    let mut warnings = Vec::new();
    for ((pair, section), place) in &contents.taken {
        let unit = &pairs[*pair].patched;
        let is_code = unit.sections[*section].is_code();
        if !is_code || used.contains(place) {
            continue;
        }
        let functions = unit.names_in(*section).iter();
        let new = functions.filter(|name| {
            let symbol = &unit.symbols[**name];
            symbol.kind() == elf::STT_FUNC && !symbol.is_local()
        });
        warnings.extend(new.map(|function| Warning::Unused {
            file: pairs[*pair].file.clone(),
            function: unit.symbols[*function].name.clone(),
        }));
    }
    warnings
}
