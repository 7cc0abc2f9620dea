//! Types whose layout changed are found where there is debug information, and refused where the
//! running program has objects of them.

mod common;

use common::{FLAGS, compile_in, refusals};
use klp_build::{BuildError, Built, LayoutChange, PatchBuilder, Refusal, Warning, Why};
use std::path::Path;

const VISITS: &str = r#"
#include <stddef.h>
#define KEPT __attribute__((noinline))
#define NAME_LEN 16
enum mood { CALM, CROSS, MOODS };
struct place { int x; short y; };
union key { long number; char text[8]; };
typedef struct { int hour, minute; } moment_t;
struct unrelated { int nothing; };
struct visit {
	int guests;
	char name[NAME_LEN];
	unsigned early:3, late:5;
	struct { int floor; union { int room; float height; }; };
	struct { int cups; } served;
	struct place at;
	union key key;
	moment_t since;
	enum mood mood;
	int (*leave)(struct visit *, int);
	struct visit *next;
};
struct parts { int count; };
struct visit *visits;
struct unrelated unrelated;
KEPT int guests(struct visit *visit) { return visit->guests + visit->at.y + visit->since.minute; }
KEPT int others(struct unrelated *all) { return all->nothing; }
KEPT int sum(const int *n) {
	struct parts parts = { 0 };
	for (; *n; n++) parts.count += *n;
	return parts.count;
}
"#;

/// Both builds of [`VISITS`], compiled with `flags`, with each `from` made a `to` in the second.
fn builds(flags: &[&str], changes: &[(&str, &str)]) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |source: &str| {
        let flags = [&FLAGS[..], &["-g"], flags].concat();
        compile_in(folder.path(), "visits.c", source, &flags)
    };
    let mut patched = VISITS.to_owned();
    for (from, to) in changes {
        assert!(patched.contains(from), "{from}");
        patched = patched.replace(from, to);
    }
    [compile(VISITS), compile(&patched)]
}

fn patch([original, patched]: &[Vec<u8>; 2], vouched: &[&str]) -> Result<Built, BuildError> {
    let mut patch = PatchBuilder::new("fix");
    vouched.iter().for_each(|name| patch.vouch_layout(name));
    patch.pair(Path::new("visits.o"), Some(original), patched)?;
    patch.build()
}

/// What makes `guests` another function, whatever else changes.
const FIX: (&str, &str) = ("return visit->guests +", "return 1 + visit->guests +");

/// The types that are refused when the function and `from` change.
fn changed(from: &str, to: &str) -> Vec<(String, LayoutChange)> {
    let result = patch(&builds(&[], &[FIX, (from, to)]), &[]);
    if result.is_ok() {
        return Vec::new();
    }
    let layout = |(name, why): (String, Why)| match why {
        Why::ChangedLayout { change, users } => {
            assert_eq!(users, ["guests"], "{name}");
            (name, change)
        }
        why => panic!("{name}: {why}"),
    };
    refusals(result).into_iter().map(layout).collect()
}

fn new(member: &str) -> LayoutChange {
    let member = member.to_owned();
    LayoutChange::New { member }
}

#[test]
fn each_kind_of_change_is_named() {
    let moved = |member: &str, original: &str, patched: &str| LayoutChange::Moved {
        member: member.to_owned(),
        original: original.to_owned(),
        patched: patched.to_owned(),
    };
    let retyped = |member: &str, original: &str, patched: &str| LayoutChange::Retyped {
        member: member.to_owned(),
        original: original.to_owned(),
        patched: patched.to_owned(),
    };
    for (from, to, name, change) in [
        // A member at the end, and one where there was only padding.
        (
            "*next;",
            "*next; int vip;",
            "struct visit",
            new("the member 'vip'"),
        ),
        (
            "short y;",
            "short y, z;",
            "struct place",
            new("the member 'z'"),
        ),
        (
            "int x; short y;",
            "short y; int x;",
            "struct place",
            moved("the member 'x'", "at byte 0", "at byte 4"),
        ),
        (
            "LEN 16",
            "LEN 24",
            "struct visit",
            retyped("the member 'name'", "char[16]", "char[24]"),
        ),
        (
            "early:3",
            "early:4",
            "struct visit",
            retyped("the member 'early'", "unsigned int:3", "unsigned int:4"),
        ),
        (
            "int floor;",
            "int floor, stairs;",
            "struct visit",
            new("the member 'stairs'"),
        ),
        (
            "int cups;",
            "int cups, plates;",
            "struct visit",
            new("the member 'served.plates'"),
        ),
        (
            "int hour, minute;",
            "int hour, minute, second;",
            "moment_t",
            new("the member 'second'"),
        ),
        (
            "char text[8];",
            "char text[8]; short both[6];",
            "union key",
            new("the member 'both'"),
        ),
        (
            "{ CALM, CROSS",
            "{ CALM, SAD, CROSS",
            "enum mood",
            moved("the value 'CROSS'", "1", "2"),
        ),
        (
            "{ CALM, CROSS,",
            "{ CALM,",
            "enum mood",
            LayoutChange::Gone {
                member: "the value 'CROSS'".into(),
            },
        ),
        (
            "visit *, int)",
            "visit *, long)",
            "struct visit",
            retyped(
                "the member 'leave'",
                "int(struct visit*, int)*",
                "int(struct visit*, long int)*",
            ),
        ),
    ] {
        let mut found = changed(from, to);
        // What is called so by clang.
        for (_, change) in &mut found {
            if let LayoutChange::Retyped { patched, .. } = change {
                *patched = patched.replace(" long)", " long int)");
            }
        }
        assert_eq!(found, [(name.to_owned(), change)], "{to}");
    }
}

#[test]
fn what_keeps_its_meaning_is_no_change() {
    for (from, to) in [
        // Another name, also for a type; a type that is new; a value that is.
        ("int nothing;", "int nothing; /* and more */"),
        ("short y;", "short north;\n#define y north\n"),
        ("char name[NAME_LEN];", "const char name[NAME_LEN];"),
        (
            "struct parts {",
            "struct fresh { int a; } fresh;\nstruct parts {",
        ),
        ("CROSS, MOODS }", "CROSS, MOODS, MORE_MOODS }"),
        ("int guests;\n", "int_type guests;\n"),
    ] {
        let header = ("#define KEPT", "typedef int int_type;\n#define KEPT");
        let built = patch(&builds(&[], &[FIX, header, (from, to)]), &[]);
        let built = built.unwrap_or_else(|why| panic!("{to}: {why}"));
        assert_eq!(built.functions, ["guests"], "{to}");
        assert_eq!(built.warnings, [], "{to}");
    }
}

#[test]
fn a_function_may_use_a_type_by_a_cast() {
    // Debug information does not say what `sum` casts: that the file has the type is enough.
    let change = (
        "struct unrelated { int nothing;",
        "struct unrelated { long something; int nothing;",
    );
    let fix = (
        "parts.count += *n",
        "parts.count += *n + ((struct unrelated *)visits)->nothing",
    );
    let original = ("unrelated unrelated;", "unrelated *unrelated;");
    let folder = tempfile::tempdir().expect("a folder");
    let source = VISITS.replace(original.0, original.1);
    let compile = |source: &str| {
        let flags = [&FLAGS[..], &["-g"]].concat();
        compile_in(folder.path(), "visits.c", source, &flags)
    };
    let patched = source.replace(change.0, change.1).replace(fix.0, fix.1);
    let found = refusals(patch(&[compile(&source), compile(&patched)], &[]));
    assert!(
        matches!(&*found, [(name, Why::ChangedLayout { .. })] if name == "struct unrelated"),
        "{found:?}"
    );
}

#[test]
fn an_author_may_vouch_for_a_type() {
    let builds = builds(&[], &[FIX, ("short y;", "short y; int z;")]);
    // `struct visit` only grew with what it contains.
    let refused = patch(&builds, &[]);
    let Err(BuildError::Refused(refused)) = &refused else {
        panic!("{refused:?}");
    };
    let [Refusal { name, why, .. }] = &refused[..] else {
        panic!("{refused:?}");
    };
    let said = why.to_string();
    assert_eq!(name, "struct place");
    for part in [
        "the member 'z' is new",
        "guests",
        "docs/shadow-variables.md",
        "--vouch-layout",
    ] {
        assert!(said.contains(part), "{said}");
    }
    for name in ["struct place", "place"] {
        let built = patch(&builds, &[name]).expect("vouched for");
        assert_eq!(built.warnings, []);
    }
    let built = patch(&builds, &["place", "nobody"]).expect("vouched for");
    let name = "nobody".to_owned();
    assert_eq!(built.warnings, [Warning::VouchedInVain { name }]);
    assert!(matches!(
        patch(&builds, &["visit"]),
        Err(BuildError::Refused(_))
    ));
}

#[test]
fn variables_of_functions_in_the_patch_are_no_objects_that_stay() {
    let change = ("int count;", "int count, steps;");
    let fix = ("parts.count += *n;", "parts.count += *n, parts.steps++;");
    let ends = ("return parts.count;", "return parts.count + parts.steps;");
    let built = patch(&builds(&[], &[change, fix, ends]), &[]).expect("no thread is in it");
    assert_eq!(built.functions, ["sum"]);
    let file = Path::new("visits.o").to_path_buf();
    let name = "struct parts".to_owned();
    let change_found = new("the member 'steps'");
    let expected = Warning::LayoutOfVariables {
        file,
        name,
        change: change_found,
    };
    assert_eq!(built.warnings, [expected]);
    // A pointer may lead anywhere.
    for kept in [
        "struct parts parts = { 0 }, *kept = *n ? (struct parts *)visits : &parts; kept->count++;",
        "static struct parts kept; struct parts parts = kept; kept.count++;",
    ] {
        let source = VISITS.replace("struct parts parts = { 0 };", kept);
        let patched = [change, fix, ends]
            .iter()
            .fold(source.clone(), |all, (from, to)| all.replace(from, to));
        let folder = tempfile::tempdir().expect("a folder");
        let flags = [&FLAGS[..], &["-g", "-O1"]].concat();
        let compile = |source: &str| compile_in(folder.path(), "visits.c", source, &flags);
        let result = patch(&[compile(&source), compile(&patched)], &[]);
        assert!(
            matches!(result, Err(BuildError::Refused(_))),
            "{kept}: {result:?}"
        );
    }
}

#[test]
fn debug_information_of_all_kinds_is_read() {
    for flags in [
        &["-gdwarf-4"][..],
        &["-gdwarf-5"],
        &["-gdwarf-2", "-gstrict-dwarf"],
        &["-g3"],
        &["-gz"],
        &["-fdebug-types-section", "-gdwarf-4"],
        &["-fdebug-types-section", "-gdwarf-5"],
        &["-fdebug-types-section", "-gdwarf-5", "-gz", "-g3"],
        &["-O0"],
        &["-Os", "-fno-pic"],
    ] {
        let fixed = patch(&builds(flags, &[FIX]), &[]);
        let fixed = fixed.unwrap_or_else(|why| panic!("{flags:?}: {why}"));
        assert_eq!(fixed.warnings, [], "{flags:?}");
        for (from, to, name) in [
            ("short y;", "short y, z;", "struct place"),
            ("early:3, late:5", "early:5, late:3", "struct visit"),
            ("int hour, minute", "int minute, hour", "moment_t"),
        ] {
            let found = refusals(patch(&builds(flags, &[FIX, (from, to)]), &[]));
            let [(refused, Why::ChangedLayout { .. })] = &found[..] else {
                panic!("{flags:?}: {found:?}");
            };
            assert_eq!(refused, name, "{flags:?}");
        }
    }
}

#[test]
fn without_debug_information_the_author_is_told() {
    let change = ("*next;", "*next; int vip;");
    for flags in [&["-g0"][..], &["-gsplit-dwarf"]] {
        let built = patch(&builds(flags, &[FIX, change]), &[]).expect("nothing is known");
        let [warning] = &built.warnings[..] else {
            panic!("{:?}", built.warnings);
        };
        assert!(
            matches!(warning, Warning::TypesNotCompared { .. }),
            "{warning}"
        );
        let said = warning.to_string();
        assert!(
            said.contains("visits.o") && said.contains("compile with -g"),
            "{said}"
        );
    }
}

#[test]
fn damaged_debug_information_is_refused() {
    use object::{Object, ObjectSection};
    let [original, patched] = builds(&[], &[FIX, ("*next;", "*next; int vip;")]);
    let file = object::File::parse(&*patched).expect("an object file");
    let range = |name: &str| {
        let section = file
            .section_by_name(name)
            .expect("it has debug information");
        let (start, len) = section.file_range().expect("it has bytes");
        start as usize..(start + len) as usize
    };
    for name in [".debug_info", ".debug_abbrev"] {
        let mut broken = patched.clone();
        broken[range(name)].fill(0xff);
        let found = refusals(patch(&[original.clone(), broken], &[]));
        assert!(
            matches!(&*found, [(name, Why::DebugInfo { .. })] if name == ".debug_info"),
            "{found:?}"
        );
    }
    // Whatever a byte says, nothing panics, and it comes to an end.
    for name in [".debug_info", ".debug_abbrev", ".debug_str"] {
        for at in range(name).step_by(11) {
            for bits in [0x01, 0xff] {
                let mut broken = patched.clone();
                broken[at] ^= bits;
                let _ = patch(&[original.clone(), broken], &[]);
            }
        }
    }
}

/// Several files, with the original and the patched source of each.
fn files(flags: &[&str], sources: &[(&str, &str, &str)]) -> Result<Built, BuildError> {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = [&FLAGS[..], &["-g"], flags].concat();
    let mut patch = PatchBuilder::new("fix");
    let mut objects = Vec::new();
    for after in [false, true] {
        for (name, ..) in sources.iter().filter(|(name, ..)| name.ends_with(".h")) {
            let (_, original, patched) = sources.iter().find(|each| each.0 == *name).expect("it");
            let text = if after { patched } else { original };
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        for (name, original, patched) in sources.iter().filter(|(name, ..)| !name.ends_with(".h")) {
            let text = if after { patched } else { original };
            objects.push((*name, compile_in(folder.path(), name, text, &flags)));
        }
    }
    let (before, after) = objects.split_at(objects.len() / 2);
    for ((name, before), (_, after)) in before.iter().zip(after) {
        patch.pair(Path::new(name), Some(before), after)?;
    }
    patch.build()
}

const HEADER: &str = "struct seat { int row; };\nstruct hall { struct seat *seats; int count; };\n";
const GROWN: &str =
    "struct seat { int row; int free; };\nstruct hall { struct seat *seats; int count; };\n";

#[test]
fn types_matter_where_functions_change() {
    let hall = "#include \"hall.h\"\nint row(struct seat *seat) { return seat->row; }\n";
    let other = |n: u32| format!("int other(int n) {{ return n + {n}; }}\n");
    // No function that goes in is from a file that has the type.
    let built = files(
        &[],
        &[
            ("hall.h", HEADER, GROWN),
            ("hall.c", hall, hall),
            ("other.c", &other(1), &other(2)),
        ],
    );
    let built = built.expect("nobody uses what is new");
    assert_eq!(built.functions, ["other"]);
    assert_eq!(built.warnings, []);
    // A new user of a type is compared with what other files know of it.
    let using = format!(
        "#include \"hall.h\"\n{}",
        other(1).replace("n + 1", "((struct seat *)(long)n)->free")
    );
    let result = files(
        &[],
        &[
            ("hall.h", HEADER, GROWN),
            ("hall.c", hall, hall),
            ("other.c", &other(1), &using),
        ],
    );
    let found = refusals(result);
    assert!(
        matches!(&*found, [(name, Why::ChangedLayout { .. })] if name == "struct seat"),
        "{found:?}"
    );
    let using = using.replace("free", "row");
    let built = files(
        &[],
        &[
            ("hall.h", HEADER, HEADER),
            ("hall.c", hall, hall),
            ("other.c", &other(1), &using),
        ],
    );
    assert_eq!(built.expect("it is the same there").warnings, []);
}

#[test]
fn a_type_that_was_only_declared_is_looked_for_elsewhere() {
    let before = "struct seat; int row(struct seat *seat) { return seat ? 1 : 0; }\n";
    let after =
        "#include \"hall.h\"\nint row(struct seat *seat) { return seat ? seat->row : 0; }\n";
    let hall = "#include \"hall.h\"\nint first(struct hall *hall) { return hall->seats->row; }\n";
    let built = files(
        &[],
        &[
            ("hall.h", HEADER, HEADER),
            ("row.c", before, after),
            ("hall.c", hall, hall),
        ],
    );
    assert_eq!(built.expect("it is the same there").warnings, []);
    let built = files(&[], &[("hall.h", HEADER, HEADER), ("row.c", before, after)]);
    let warnings = built.expect("nothing is known").warnings;
    assert!(
        matches!(&*warnings, [Warning::UnknownLayout { name, .. }] if name == "struct seat"),
        "{warnings:?}"
    );
    let result = files(
        &[],
        &[
            ("hall.h", HEADER, GROWN),
            ("row.c", before, after),
            ("hall.c", hall, hall),
        ],
    );
    let found = refusals(result);
    assert!(
        found
            .iter()
            .any(|(name, why)| name == "struct seat" && matches!(why, Why::ChangedLayout { .. })),
        "{found:?}"
    );
}

#[test]
fn types_of_the_same_name_in_other_files_are_others() {
    let source = |members: &str, n: u32| {
        format!(
            "struct own {{ {members} }}; int use{n}(struct own *own) {{ return own->a + {n}; }}\n"
        )
    };
    let (one, fixed) = (
        source("int a;", 1),
        source("int a;", 1).replace("+ 1", "+ 3"),
    );
    let two = source("long b; int a;", 2);
    let built = files(&[], &[("one.c", &one, &fixed), ("two.c", &two, &two)]).expect("a patch");
    assert_eq!(built.warnings, []);
    let types = "int use(int n) { struct own { int a; } own = { n }; return own.a; }";
    let more = |n: u32| {
        format!(
            "{types}\nint more(int n) {{ struct own {{ long a, b; }} own = {{ n, {n} }}; return own.a + own.b; }}"
        )
    };
    let built = files(&[], &[("one.c", &more(1), &more(2))]).expect("a patch");
    assert_eq!((built.functions.len(), built.warnings.len()), (1, 0));
}

const SHAPES: &str = r#"
namespace shop {
template <typename T> struct Box { T value; int count; };
struct Base { virtual ~Base(); virtual int area() const; int id; };
struct Shape : Base { Box<int> box; Box<long> wide; int area() const override; };
class Hidden { int a; public: static int total; int get() const { return a; } };
Base::~Base() {}
int Base::area() const { return id; }
int Shape::area() const { return box.value + 1; }
namespace { struct Local { int here; }; Local local; }
int use(Shape *shape, Hidden &hidden) { return shape->area() + hidden.get() + local.here + shape->wide.count; }
}
"#;

#[test]
fn classes_are_compared() {
    if !has_cxx() {
        return;
    }
    let cxx = ["-x", "c++"];
    let fixed = SHAPES.replace("+ hidden.get()", "- hidden.get()");
    let built = files(&cxx, &[("shapes.cc", SHAPES, &fixed)]).expect("types are the same");
    assert_eq!(built.warnings, []);
    for (from, to, expected, member) in [
        (
            "T value; int count;",
            "T value; int count, more;",
            "shop::Box<int>",
            "member 'more'",
        ),
        (
            "int area() const; int id;",
            "int area() const; virtual int sides(); int id;",
            "shop::Base",
            "virtual function 'sides",
        ),
        (
            "virtual int area() const; int id;",
            "int id; virtual int area() const; int extra;",
            "shop::Base",
            "member 'extra'",
        ),
        (
            "Hidden { int a;",
            "Hidden { long more; int a;",
            "shop::Hidden",
            "member 'more'",
        ),
        (
            "struct Local { int here;",
            "struct Local { short here;",
            "shop::{anonymous}::Local",
            "member 'here'",
        ),
        (
            "struct Shape : Base {",
            "struct Other { int o; }; struct Shape : Base, Other {",
            "shop::Shape",
            "base class 'shop::Other'",
        ),
    ] {
        let patched = fixed.replace(from, to);
        assert_ne!(patched, fixed);
        let found = refusals(files(&cxx, &[("shapes.cc", SHAPES, &patched)]));
        let refused = found.iter().any(|(name, why)| {
            matches!(why, Why::ChangedLayout { change, .. } if name == expected && change.to_string().contains(member))
        });
        assert!(refused, "{to}: {found:?}");
    }
    // A function more that is not virtual, or another static variable, is nothing of an object's.
    let patched = fixed.replace("static int total;", "static int total, most; int put();");
    let built = files(&cxx, &[("shapes.cc", SHAPES, &patched)]).expect("objects are the same");
    assert_eq!(built.warnings, []);
}

fn has_cxx() -> bool {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let found = std::process::Command::new(compiler)
        .arg("-print-prog-name=cc1plus")
        .output();
    let clang = std::env::var("CC").is_ok_and(|name| name.contains("clang"));
    clang || found.is_ok_and(|found| found.stdout.contains(&b'/'))
}

#[test]
fn a_class_is_compared_where_it_is_defined() {
    if !has_cxx() {
        return;
    }
    let header = "struct Base { virtual ~Base(); virtual int area(); int id; };\n";
    let grown = header.replace("int id;", "int more; int id;");
    let other = grown.replace("Base", "Rest");
    let uses =
        |n: u32| format!("#include \"base.h\"\nint use(Base *base) {{ return base->id + {n}; }}\n");
    let home = "#include \"base.h\"\nBase::~Base() {}\nint Base::area() { return 1; }\n";
    let result = files(
        &["-x", "c++"],
        &[
            ("base.h", header, &grown),
            ("use.cc", &uses(1), &uses(2)),
            ("home.cc", home, home),
        ],
    );
    let found = refusals(result);
    let is_base =
        |name: &str, why: &Why| name == "Base" && matches!(why, Why::ChangedLayout { .. });
    assert!(
        found.iter().any(|(name, why)| is_base(name, why)),
        "{found:?}"
    );
    let built = files(
        &["-x", "c++"],
        &[
            ("base.h", header, &format!("{header}{other}")),
            ("use.cc", &uses(1), &uses(2)),
            ("home.cc", home, home),
        ],
    );
    assert_eq!(built.expect("it is the same there").warnings, []);
    let built = files(
        &["-x", "c++"],
        &[("base.h", header, &grown), ("use.cc", &uses(1), &uses(2))],
    );
    // Its home is unknown.
    let warnings = built.expect("nothing is known").warnings;
    assert!(
        matches!(&*warnings, [Warning::UnknownLayout { name, .. }] if name == "Base"),
        "{warnings:?}"
    );
}

#[test]
fn a_changed_prototype_is_a_warning() {
    let source = |head: &str, body: &str| {
        format!("__attribute__((noinline)) {head} {{ {body} }} int caller(int n) {{ return n; }}\n")
    };
    let warned = |before: (&str, &str), after: (&str, &str)| {
        let (before, after) = (source(before.0, before.1), source(after.0, after.1));
        files(&[], &[("one.c", &before, &after)])
            .expect("a patch")
            .warnings
    };
    let before = ("int work(int n, const char *s)", "return n + *s;");
    let found = warned(
        before,
        ("int work(long n, const char *s)", "return (int)n - *s;"),
    );
    assert!(
        matches!(&*found, [Warning::Prototype { function, .. }] if function == "work"),
        "{found:?}"
    );
    for after in [
        ("int work(unsigned n, const char *s)", "return n - *s;"),
        ("int work(int n, char *s)", "return n - *s;"),
    ] {
        assert_eq!(warned(before, after), [], "{after:?}");
    }
    let (before, after) = (
        ("void tell(int *n)", "*n = 1;"),
        ("int tell(int *n)", "*n = 2; return 1;"),
    );
    assert_eq!(warned(before, after), []);
    let found = warned(after, before);
    assert!(matches!(&*found, [Warning::Prototype { .. }]), "{found:?}");
}

const COUNTER: &str = r#"
pub enum Mood { Calm, Cross(u32), Odd { left: u8, right: u8 } }
pub struct Counter { pub total: u64, pub mood: Mood, pub names: Vec<String>, pub last: Option<Box<Counter>> }
pub trait Told { fn told(&self, n: u64) -> u64; }
#[inline(never)]
pub fn count(counter: &mut Counter, numbers: &[u64]) -> u64 {
    let (least, most) = (counter.total, 9);
    let fits = |n: &&u64| **n > least;
    let found: u64 = numbers.iter().filter(fits).map(|n| n + most).sum();
    counter.total += found;
    match counter.mood { Mood::Cross(n) => n as u64, Mood::Odd { left, .. } => left.into(), _ => found }
}
#[inline(never)]
pub fn keep(counter: &Counter) -> Box<dyn Fn(u64) -> u64> {
    let (total, extra) = (counter.total, counter.names.len() as u64);
    Box::new(move |n| n + total)
}
"#;

/// Both builds of [`COUNTER`], by this machine's rustc.
fn rust(changes: &[(&str, &str)]) -> Result<Built, BuildError> {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |source: &str| {
        std::fs::write(folder.path().join("counter.rs"), source).expect("written");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let status = std::process::Command::new(rustc)
            .current_dir(folder.path())
            .args([
                "-O",
                "-g",
                "--crate-type=lib",
                "--emit=obj",
                "--edition=2021",
                "-Awarnings",
            ])
            .args(["-Ccodegen-units=1", "counter.rs", "-o", "counter.o"])
            .status();
        assert!(status.expect("a Rust compiler").success());
        std::fs::read(folder.path().join("counter.o")).expect("an object file")
    };
    let mut patched = COUNTER.to_owned();
    for (from, to) in changes {
        assert!(patched.contains(from), "{from}");
        patched = patched.replace(from, to);
    }
    let mut patch = PatchBuilder::new("fix");
    patch.pair(
        Path::new("counter.o"),
        Some(&compile(COUNTER)),
        &compile(&patched),
    )?;
    patch.build()
}

#[test]
fn types_of_rust_are_compared() {
    let fix = ("counter.total += found;", "counter.total += found + 1;");
    let built = rust(&[fix]).expect("types are the same");
    assert_eq!(built.warnings, []);
    for (from, to, name) in [
        (
            "pub total: u64,",
            "pub total: u64, pub more: u16,",
            "counter::Counter",
        ),
        ("Calm, Cross(u32),", "Calm, Cross(u64),", "counter::Mood"),
        (
            "Calm, Cross(u32),",
            "Calm, Sad, Cross(u32),",
            "counter::Mood",
        ),
        (
            "{ left: u8, right: u8 }",
            "{ left: u8, right: u8, top: u8 }",
            "counter::Mood",
        ),
    ] {
        let found = refusals(rust(&[fix, (from, to)]));
        let refused = found
            .iter()
            .any(|(refused, why)| refused == name && matches!(why, Why::ChangedLayout { .. }));
        assert!(refused, "{to}: {found:?}");
    }
}

#[test]
fn closures_of_rust_may_change_unless_they_are_kept() {
    // What iterators borrow and have is gone when the function returns.
    let built = rust(&[("**n > least", "**n > least && **n < most")]).expect("a patch");
    for warning in &built.warnings {
        assert!(
            matches!(warning, Warning::LayoutOfVariables { name, .. } if name.contains("count::{closure")),
            "{warning}"
        );
    }
    // What is in a box is called when the function is long gone.
    let result = rust(&[("n + total)", "n + total + extra)")]);
    let found = refusals(result);
    assert!(
        found.iter().any(|(name, why)| {
            name.contains("keep::{closure") && matches!(why, Why::ChangedLayout { .. })
        }),
        "{found:?}"
    );
}
