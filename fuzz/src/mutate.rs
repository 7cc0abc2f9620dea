//! Changes to object files that leave them object files: one field of a header, a symbol or a
//! relocation becomes what another one has, a little more, or an extreme.
//!
//! A fuzzer that knows bytes alone would spend its time on files that are refused at once.

use libfuzzer_sys::fuzzer_mutate;

/// Bytes of an ELF header, a section header, a symbol, a relocation, and where in them the fields
/// are, and how long.
const HEADER: Table = Table {
    len: 64,
    fields: &[
        (4, 1),
        (5, 1),
        (16, 2),
        (18, 2),
        (40, 8),
        (48, 4),
        (58, 2),
        (60, 2),
        (62, 2),
    ],
};
const SECTION: Table = Table {
    len: 64,
    fields: &[
        (0, 4),
        (4, 4),
        (8, 8),
        (16, 8),
        (24, 8),
        (32, 8),
        (40, 4),
        (44, 4),
        (48, 8),
        (56, 8),
    ],
};
const SYMBOL: Table = Table {
    len: 24,
    fields: &[(0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (16, 8)],
};
const RELA: Table = Table {
    len: 24,
    fields: &[(0, 8), (8, 4), (12, 4), (16, 8)],
};

struct Table {
    len: usize,
    /// Offset and length of each.
    fields: &'static [(usize, usize)],
}

/// Mutates the object file that follows the first `skip` bytes of `data`; says how long it is.
pub fn object(skip: usize, data: &mut [u8], size: usize, most: usize, seed: u32) -> usize {
    let mut random = Random::new(seed);
    let changed = match data.get_mut(skip..size) {
        Some(file) if random.below(8) != 0 => change(file, &mut random),
        _ => false,
    };
    if changed {
        size
    } else {
        fuzzer_mutate(data, size, most)
    }
}

/// The same for both object files of [`pair`](crate::pair), either or both in the same way.
pub fn pair(data: &mut [u8], size: usize, most: usize, seed: u32) -> usize {
    let mut random = Random::new(seed);
    let lens = crate::pair::split(&data[..size])
        .map(|(original, patched)| (original.len(), patched.len()));
    let Some((original, _)) = lens.filter(|_| random.below(8) != 0) else {
        return fuzzer_mutate(data, size, most);
    };
    let (original, patched) = data[4..size].split_at_mut(original);
    let which = random.below(3);
    let (mut first, mut second) = (random.clone(), random);
    let changed = which != 1 && change(original, &mut first);
    let changed = which != 0 && change(patched, &mut second) || changed;
    if changed {
        size
    } else {
        fuzzer_mutate(data, size, most)
    }
}

/// Changes one to four things. `false`: it is no object file.
fn change(file: &mut [u8], random: &mut Random) -> bool {
    for _ in 0..=random.below(4) {
        let Some(tables) = tables(file) else {
            return false;
        };
        let of = |kind: u64| tables.iter().filter(move |found| found.kind == kind);
        let (kind, table) = match random.below(16) {
            0 => {
                change_entry(file, 0, 1, &HEADER, random);
                continue;
            }
            1..5 => (SECTIONS, &SECTION),
            5..9 => (SYMTAB, &SYMBOL),
            9..13 => (RELAS, &RELA),
            _ => (CONTENTS, &RELA),
        };
        let count = of(kind).count() as u64;
        if count == 0 {
            continue;
        }
        let Some(found) = of(kind).nth(random.below(count) as usize) else {
            continue;
        };
        if kind == CONTENTS {
            let at = found.at + random.below(found.len as u64) as usize;
            file[at] = random.next() as u8;
        } else {
            change_entry(file, found.at, found.len / table.len, table, random);
        }
    }
    true
}

/// Changes a field of one of `count` entries.
fn change_entry(file: &mut [u8], at: usize, count: usize, table: &Table, random: &mut Random) {
    if count == 0 || at + count * table.len > file.len() {
        return;
    }
    let mut entry = || at + random.below(count as u64) as usize * table.len;
    let (to, from) = (entry(), entry());
    let (offset, len) = table.fields[random.below(table.fields.len() as u64) as usize];
    let field = |entry: usize| entry + offset..entry + offset + len;
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(&file[field(to)]);
    let old = u64::from_le_bytes(bytes);
    let new = match random.below(6) {
        0 | 1 => {
            file.copy_within(field(from), to + offset);
            return;
        }
        2 => old.wrapping_add(random.below(33)).wrapping_sub(16),
        3 => EXTREMES[random.below(EXTREMES.len() as u64) as usize],
        4 => old ^ 1 << random.below(8 * len as u64),
        _ => random.below(file.len() as u64 + 1),
    };
    file[field(to)].copy_from_slice(&new.to_le_bytes()[..len]);
}

const EXTREMES: [u64; 12] = [
    0,
    1,
    8,
    0xff,
    0xff20,
    0xfff1,
    0xfff2,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// What a section holds.
const SECTIONS: u64 = 0;
const SYMTAB: u64 = 2;
const RELAS: u64 = 4;
const CONTENTS: u64 = 1;

struct Found {
    kind: u64,
    at: usize,
    len: usize,
}

/// The section headers, and the contents of sections, of a file with the least byte first.
fn tables(file: &[u8]) -> Option<Vec<Found>> {
    let number = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(file.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let inside = |at: u64, len: u64| {
        let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
        (len > 0 && at.checked_add(len)? <= file.len()).then_some((at, len))
    };
    let (at, len) = inside(number(40, 8)?, 64 * number(60, 2)?)?;
    let mut found = vec![Found {
        kind: SECTIONS,
        at,
        len,
    }];
    for header in (at..at + len).step_by(64) {
        let kind = match number(header + 4, 4)? {
            kind @ (SYMTAB | RELAS) => kind,
            _ => CONTENTS,
        };
        if let Some((at, len)) = inside(number(header + 24, 8)?, number(header + 32, 8)?) {
            found.push(Found { kind, at, len });
        }
    }
    Some(found)
}

/// Numbers without end out of one (xorshift).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u32) -> Self {
        Self((u64::from(seed) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// One below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
