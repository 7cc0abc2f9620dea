//! The patches that random sequences are about.

use super::ledger::Ledger;
use klp_core::model::{Func, Object, Patch, Replace, VMLINUX};
use klp_core::sim::{Pad, Place, SimFunc, SimOs};
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
    /// Functions of the base image.
    base: &'static [&'static str],
    /// Functions of the module.
    module: &'static [&'static str],
}

const NEAR: Place = Place::Near;
const FAR: Place = Place::Far;

/// How many there are.
pub(crate) const PATCHES: usize = 10;

/// Patches that share functions, replace each other, belong to sets, and know states in several versions.
pub(crate) const SPECS: [Spec; PATCHES] = [
    Spec { name: "a", place: NEAR, replace: Replace::None, states: &[], base: &["f", "g", "h"], module: &["m"] },
    Spec { name: "b", place: FAR, replace: Replace::None, states: &[], base: &["f", "g"], module: &[] },
    Spec { name: "c", place: NEAR, replace: Replace::None, states: &[(1, 1)], base: &["f", "h"], module: &["m", "n"] },
    Spec { name: "d", place: FAR, replace: Replace::None, states: &[(1, 2)], base: &["h"], module: &["m", "n"] },
    Spec { name: "all1", place: NEAR, replace: Replace::All, states: &[(1, 1)], base: &["f"], module: &["m"] },
    Spec { name: "all2", place: FAR, replace: Replace::All, states: &[(1, 2)], base: &["g", "p"], module: &[] },
    Spec { name: "set1", place: NEAR, replace: Replace::Set(1), states: &[], base: &["p"], module: &["q"] },
    Spec { name: "set1_later", place: FAR, replace: Replace::Set(1), states: &[], base: &["r"], module: &["q"] },
    Spec { name: "set2", place: NEAR, replace: Replace::Set(2), states: &[], base: &["r"], module: &["o"] },
    Spec { name: "set3", place: NEAR, replace: Replace::Set(3), states: &[], base: &[], module: &["o"] },
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
        old.states.iter().all(|(id, version)| match self.states.iter().find(|(own, _)| own == id) {
            Some((_, own)) => own >= version,
            None => !self.replaces(old),
        })
    }

    /// Whether both are in sets, in different ones, and have a function in common, be it in a module that is not there.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let sets = matches!((self.replace, other.replace), (Replace::Set(one), Replace::Set(two)) if one != two);
        let both = |own: &[&str], others: &[&str]| own.iter().any(|func| others.contains(func));
        sets && (both(self.base, other.base) || both(self.module, other.module))
    }

    fn build(&self, host: &SimOs, funcs: &[(&str, SimFunc)], ledger: &Ledger) -> Patch {
        let object = |name: &str, wanted: &[&str]| {
            let new = wanted.iter().map(|wanted| {
                let (name, func) = funcs.iter().find(|(name, _)| name == wanted).expect("it was made");
                Func::new(name, host.replacement(self.name, *func, self.place).start()).expect("memory")
            });
            let object = Object::module(name).and_then(|object| object.funcs_from(new));
            object.map(|object| object.with_callbacks(Box::new(ledger.clone())))
        };
        let mut patch = Patch::builder(self.name).replace(self.replace);
        patch = patch.object(object(VMLINUX, self.base)).object(object(MOD, self.module));
        for (id, version) in self.states {
            patch = patch.state(State::new(*id, *version));
        }
        patch.build().expect("it is well formed")
    }
}

/// Makes the functions of the system, one of which nobody patches, and the patches.
pub(crate) fn build(host: &SimOs, ledger: &Ledger) -> (Vec<SimFunc>, [Option<Patch>; PATCHES]) {
    let whole = ["f", "g", "p", "r"].map(|name| (name, host.function(VMLINUX, name)));
    let split = [("h", host.function_with(VMLINUX, "h", Pad::Split))];
    let module = ["m", "n", "o", "q"].map(|name| (name, host.function_with(MOD, name, Pad::Split)));
    let bystander = [("bystander", host.function(MOD, "bystander"))];
    host.cold_part(whole[0].1);
    host.cold_part(module[0].1);
    let funcs = [&whole[..], &split, &module, &bystander].concat();
    let patches = SPECS.each_ref().map(|spec| {
        let patch = spec.build(host, &funcs, ledger);
        host.know(&patch);
        Some(patch)
    });
    (funcs.into_iter().map(|(_, func)| func).collect(), patches)
}
