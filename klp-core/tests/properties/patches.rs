//! The patches that random sequences are about.

use super::ledger::Ledger;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::{Object, Patch, Replace, VMLINUX};
use klp_core::port::{ImageLayout, Owner, Platform, Text};
use klp_core::relocs::{Detours, Field, KlpSymbol, Relocs};
use klp_core::sim::relocator::ABS64;
use klp_core::sim::{self, End, Pad, Place, SimFunc, SimOs};
use klp_core::state::State;

/// The module that comes and goes.
pub(crate) const MOD: &str = "mod";

/// One patch as data.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    place: Place,
    pub(crate) replace: Replace,
    pub(crate) states: &'static [(u64, u32)],
    /// The patches that it depends on.
    pub(crate) depends: &'static [&'static str],
    /// Whether its code is one range, with a part that belongs to no function, and is given as
    /// such.
    whole: bool,
    /// Functions of the base image.
    base: &'static [&'static str],
    /// Functions of the module.
    module: &'static [&'static str],
}

const NEAR: Place = Place::Near;
const FAR: Place = Place::Far;

/// How many there are.
pub(crate) const PATCHES: usize = 10;

/// Patches that share functions, replace each other, belong to sets, know states in several
/// versions, and depend on others: on one that a patch of its set replaces, too.
pub(crate) const SPECS: [Spec; PATCHES] = [
    Spec {
        name: "a",
        place: NEAR,
        whole: false,
        replace: Replace::None,
        states: &[],
        depends: &[],
        base: &["f", "g", "h"],
        module: &["m"],
    },
    Spec {
        name: "b",
        place: FAR,
        whole: true,
        replace: Replace::None,
        states: &[],
        depends: &["set1"],
        base: &["f", "g"],
        module: &[],
    },
    Spec {
        name: "c",
        place: NEAR,
        whole: false,
        replace: Replace::None,
        states: &[(1, 1)],
        depends: &[],
        base: &["f", "h"],
        module: &["m", "n"],
    },
    Spec {
        name: "d",
        place: FAR,
        whole: true,
        replace: Replace::None,
        states: &[(1, 2)],
        depends: &["c"],
        base: &["h"],
        module: &["m", "n"],
    },
    Spec {
        name: "all1",
        place: NEAR,
        whole: false,
        replace: Replace::All,
        states: &[(1, 1)],
        depends: &[],
        base: &["f"],
        module: &["m"],
    },
    Spec {
        name: "all2",
        place: FAR,
        whole: true,
        replace: Replace::All,
        states: &[(1, 2)],
        depends: &[],
        base: &["g", "p"],
        module: &[],
    },
    Spec {
        name: "set1",
        place: NEAR,
        whole: false,
        replace: Replace::Set(1),
        states: &[],
        depends: &[],
        base: &["p"],
        module: &["m", "q"],
    },
    Spec {
        name: "set1_later",
        place: FAR,
        whole: true,
        replace: Replace::Set(1),
        states: &[],
        depends: &[],
        base: &["r"],
        module: &["q"],
    },
    Spec {
        name: "set2",
        place: NEAR,
        whole: false,
        replace: Replace::Set(2),
        states: &[],
        depends: &[],
        base: &["r"],
        module: &["o"],
    },
    Spec {
        name: "set3",
        place: NEAR,
        whole: false,
        replace: Replace::Set(3),
        states: &[],
        depends: &[],
        base: &[],
        module: &["o"],
    },
];

impl Spec {
    /// Whether it takes the place of `old`, if that is enabled.
    pub(crate) fn replaces(&self, old: &Self) -> bool {
        match self.replace {
            Replace::None => false,
            Replace::All => true,
            set @ Replace::Set(_) => old.replace == set,
        }
    }

    /// Whether its states fit those of `old`, which is enabled.
    pub(crate) fn fits(&self, old: &Self) -> bool {
        old.states.iter().all(
            |(id, version)| match self.states.iter().find(|(own, _)| own == id) {
                Some((_, own)) => own >= version,
                None => !self.replaces(old),
            },
        )
    }

    /// Whether both are in sets, in different ones, and have a function in common, be it in a
    /// module that is not there.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let sets = matches!((self.replace, other.replace), (Replace::Set(one), Replace::Set(two)) if one != two);
        let both = |own: &[&str], others: &[&str]| own.iter().any(|func| others.contains(func));
        sets && (both(self.base, other.base) || both(self.module, other.module))
    }

    /// Whether it depends on `other`.
    pub(crate) fn needs(&self, other: &Self) -> bool {
        self.depends.contains(&other.name)
    }

    /// The functions that it replaces.
    pub(crate) fn funcs(&self) -> impl Iterator<Item = &'static str> {
        self.base.iter().chain(self.module).copied()
    }

    fn build(&self, host: &SimOs, funcs: &[(&str, SimFunc)], ledger: &Ledger) -> Patch {
        let mut code: Vec<TextRange> = Vec::new();
        let mut object = |name: &str, wanted: &[&str]| {
            let new = wanted.iter().map(|name| {
                let func = find(funcs, name);
                // The new `f` has a part, and ends in a jump to `g` at times, as the old one does.
                let ends: &[End] = if *name == "f" {
                    &[End::In(find(funcs, "g"))]
                } else {
                    &[]
                };
                let new = host.replacement_ending(self.name, func, self.place, ends);
                code.push(new);
                if *name == "f" || *name == "m" {
                    code.push(host.cold_part_of(new));
                }
                sim::func_at(name, new.start()).expect("memory")
            });
            let object = Object::module(name).and_then(|object| object.funcs_from(new));
            let relocs = if name == MOD {
                relocs(host)
            } else {
                Relocs::default()
            };
            let object = object.map(|object| object.with_relocs(relocs));
            object.map(|object| object.with_callbacks(Box::new(ledger.clone())))
        };
        let mut patch = Patch::builder(self.name).replace(self.replace);
        patch = patch
            .object(object(VMLINUX, self.base))
            .object(object(MOD, self.module));
        if self.whole {
            let (start, last) = (code[0].start(), host.helper(self.name, code[0]));
            let len = last.end().get() - start.get();
            patch = patch.code(TextRange::new(start, len).expect("it does not wrap"));
        }
        for on in self.depends {
            patch = patch.depends_on(on);
        }
        for (id, version) in self.states {
            patch = patch.state(State::new(*id, *version));
        }
        patch.build().expect("it is well formed")
    }
}

/// A field that holds the address of a function of the module when that is there.
fn relocs(host: &SimOs) -> Relocs {
    let near = TextRange::new(CodeAddr::new(0x50_0000_0000), 8).expect("it does not wrap");
    let layout = ImageLayout {
        data: 8,
        ..ImageLayout::default()
    };
    let image = host.text().alloc(near, 1 << 20, layout).expect("memory");
    let mut relocs = Relocs::default();
    let symbol = KlpSymbol {
        object: MOD,
        name: "module_bystander",
        pos: 0,
    };
    relocs.begin_section(".data").expect("memory");
    // SAFETY: there are no detours.
    let symbol = unsafe { relocs.add_symbol(symbol, Detours::default()) }.expect("memory");
    let field = Field {
        at: image.data.start(),
        kind: ABS64,
        addend: 0,
        room: 8,
        owner: Owner::System,
        symbol,
        known: None,
    };
    // SAFETY: the field is in the image, which is never freed.
    unsafe { relocs.add_field(field) }.expect("memory");
    relocs
}

/// The field of `patch` that is relocated with the module.
pub(crate) fn field_of(patch: &Patch) -> Option<CodeAddr> {
    let mut fields = patch
        .objects()
        .iter()
        .flat_map(|object| object.relocs().fields());
    Some(fields.next()?.at)
}

/// The function called `name`.
pub(crate) fn find(funcs: &[(&str, SimFunc)], name: &str) -> SimFunc {
    let found = funcs.iter().find(|(other, _)| *other == name);
    found.expect("it was made").1
}

/// Makes the functions of the system, one of which nobody patches, and the patches.
pub(crate) fn build(
    host: &SimOs,
    ledger: &Ledger,
) -> (Vec<(&'static str, SimFunc)>, [Option<Patch>; PATCHES]) {
    let g = host.function(VMLINUX, "g");
    let h = host.function_with(VMLINUX, "h", Pad::Split);
    let bystander = host.function_ending(VMLINUX, "bystander", Pad::Whole, &[End::In(h)]);
    // `f` ends in a jump to `g`, `f` and `r` in one to a function that nobody patches, which ends
    // in one to `h`; `p` goes anywhere.
    let ends = |name| match name {
        "f" => vec![End::In(g), End::In(bystander)],
        "r" => vec![End::In(bystander)],
        "p" => vec![End::Anywhere],
        _ => vec![],
    };
    let base = |name| host.function_ending(VMLINUX, name, Pad::Whole, &ends(name));
    let whole = ["f", "p", "r"].map(|name| (name, base(name)));
    let others = [("g", g), ("bystander", bystander)];
    let split = [("h", h)];
    let module = ["m", "n", "o", "q"].map(|name| (name, host.function_with(MOD, name, Pad::Split)));
    let module_bystander = [("module_bystander", host.function(MOD, "module_bystander"))];
    host.by_pointer(module[0].1);
    host.by_pointer(whole[2].1);
    host.cold_part(whole[0].1);
    host.cold_part(whole[0].1);
    host.cold_part(module[0].1);
    let funcs = [&whole[..], &split, &module, &module_bystander, &others].concat();
    let patches = SPECS.each_ref().map(|spec| {
        let patch = spec.build(host, &funcs, ledger);
        host.know(&patch);
        Some(patch)
    });
    (funcs, patches)
}
