//! Patches that need others.

use super::*;
use klp_core::model::Replace;

/// Patches of one function each: `base`, and `top`, which needs it. `set` and `sets_next` are of
/// one set, `on_set` needs the first; `all` replaces all.
struct Needs {
    engine: Sim,
    ids: [PatchId; 6],
    base: SimFunc,
}

const NAMES: [&str; 6] = ["base", "top", "set", "sets_next", "on_set", "all"];

impl Needs {
    fn new() -> Self {
        let host = SimOs::new();
        let funcs = NAMES.map(|name| host.function(VMLINUX, name));
        let mut each = funcs.iter();
        let patches = NAMES.map(|name| {
            let func = *each.next().expect("one for each name");
            let code = host.replacement(name, func, Place::Near);
            let object =
                Object::vmlinux().and_then(|object| object.func(sim::func_at(name, code.start())?));
            let patch = Patch::builder(name).object(object);
            let patch = match name {
                "top" => patch.depends_on("base"),
                "on_set" => patch.depends_on("set"),
                "set" | "sets_next" => patch.replace(Replace::Set(1)),
                "all" => patch.replace(Replace::All),
                _ => patch,
            };
            patch.build().expect("well formed")
        });
        let engine = Engine::new(host);
        let ids = patches.map(|patch| add(&engine, patch));
        let base = funcs[0];
        Self { engine, ids, base }
    }

    fn ids(&self, names: &[&str]) -> Vec<PatchId> {
        let place = |name: &&str| NAMES.iter().position(|known| known == name);
        let places = names.iter().filter_map(place);
        places.map(|place| self.ids[place]).collect()
    }

    #[track_caller]
    fn enable(&self, names: &[&str]) {
        self.engine.enable_all(&self.ids(names)).expect("it is met");
        self.settle();
    }

    #[track_caller]
    fn disable(&self, names: &[&str]) {
        let done = self.engine.disable_all(&self.ids(names));
        done.expect("nobody needs them");
        self.settle();
    }

    #[track_caller]
    fn settle(&self) {
        check(&self.engine);
        while self.engine.poll() != Poll::Idle {}
        check(&self.engine);
    }

    #[track_caller]
    fn refused(&self, done: Result<Poll, Error>, errno: i32, says: &str) {
        let error = done.expect_err("refused");
        assert_eq!((error.to_string().as_str(), error.errno()), (says, errno));
        assert!(self.engine.host().take_transcript().is_empty());
        check(&self.engine);
    }

    /// Refused, and found before, with nothing changed.
    #[track_caller]
    fn unmet(&self, name: &str, errno: i32, says: &str) {
        let id = self.ids(&[name])[0];
        let found = self.engine.preflight(id).expect("it is known").findings;
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, [says]);
        self.engine.host().take_transcript();
        let before = self.engine.host().snapshot();
        self.refused(self.engine.enable(id), errno, says);
        assert_eq!(self.engine.host().snapshot(), before);
    }
}

#[test]
fn what_it_needs_must_be_enabled_and_stay() {
    let needs = Needs::new();
    let missing = "patch 'top': it depends on the patch 'base', which is not enabled";
    needs.unmet("top", -22, missing);
    needs.enable(&["base"]);
    needs.enable(&["top"]);
    needs.engine.host().take_transcript();
    let disabled = needs.engine.disable_all(&needs.ids(&["base"]));
    let needed = "patch 'base': the enabled patch 'top' depends on it";
    needs.refused(disabled, -16, needed);
    needs.disable(&["top"]);
    needs.disable(&["base"]);
    needs.unmet("top", -22, missing);
}

#[test]
fn as_one_they_come_and_go_in_any_order() {
    for names in [["base", "top"], ["top", "base"]] {
        let needs = Needs::new();
        needs.enable(&names);
        needs.disable(&names);
        // Turned round, they go as they came.
        let worker = needs.engine.host().spawn("worker");
        needs.engine.host().call(worker, needs.base);
        let enabled = needs.engine.enable_all(&needs.ids(&names));
        assert!(matches!(enabled, Ok(Poll::Waiting { .. })));
        check(&needs.engine);
        let turned = needs.engine.reverse(needs.ids(&["top"])[0]);
        turned.expect("it is in transition");
        needs.engine.host().rest_all();
        needs.settle();
    }
}

#[test]
fn what_is_needed_cannot_be_replaced() {
    let needs = Needs::new();
    needs.enable(&["set", "on_set"]);
    needs.unmet(
        "sets_next",
        -16,
        "patch 'sets_next': it takes the place of the patch 'set', on which the patch 'on_set' \
         depends",
    );
    // Nor by a companion of the one that needs it.
    needs.disable(&["on_set"]);
    needs.engine.host().take_transcript();
    let both = needs
        .engine
        .enable_all(&needs.ids(&["sets_next", "on_set"]));
    needs.refused(
        both,
        -16,
        "patch 'sets_next': it takes the place of the patch 'set', on which the patch 'on_set' \
         depends",
    );
    needs.enable(&["on_set"]);
    // Both give way.
    needs.enable(&["all"]);
    needs.unmet(
        "on_set",
        -22,
        "patch 'on_set': it depends on the patch 'set', which is not enabled",
    );
}
