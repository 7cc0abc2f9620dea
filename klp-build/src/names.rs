//! Which symbols name what is at a place of a section.

use crate::unit::Symbol;

/// The symbols that name something in one section.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// By place.
    pub(crate) all: Vec<usize>,
    /// For each of them, where it and those before it end.
    ends: Vec<u64>,
}

impl Names {
    /// Those with the indices `all` in `symbols`.
    pub(crate) fn new(mut all: Vec<usize>, symbols: &[Symbol]) -> Self {
        all.sort_by_key(|index| symbols[*index].value);
        let mut reach = 0;
        let ends = all.iter().map(|index| {
            let symbol = &symbols[*index];
            reach = symbol.value.saturating_add(symbol.len).max(reach);
            reach
        });
        let ends = ends.collect();
        Self { all, ends }
    }

    /// The symbol that names what lies at `place`: of several at one place, the first one that is
    /// not local, or the first.
    pub(crate) fn at(&self, symbols: &[Symbol], place: i64) -> Option<usize> {
        let place = u64::try_from(place).ok();
        let covering = place.map_or(&[][..], |place| self.around(symbols, place));
        let covers = |name: &&usize| {
            let symbol = &symbols[**name];
            place.is_some_and(|place| symbol.value <= place && place < end(symbol))
        };
        let best = best(symbols, covering.iter().filter(covers));
        // Code also refers to what lies right behind a variable, or before it.
        let alone = || match &*self.all {
            [first, .., last] if symbols[*first].value != symbols[*last].value => None,
            all => self::best(symbols, all.iter()),
        };
        best.or_else(alone)
    }

    /// Some of them, with all that cover `place` among them.
    fn around(&self, symbols: &[Symbol], place: u64) -> &[usize] {
        let to = self
            .all
            .partition_point(|name| symbols[*name].value <= place);
        let from = self.ends.partition_point(|end| *end < place);
        self.all.get(from..to).unwrap_or_default()
    }

    /// How far those reach that begin before `place`.
    pub(crate) fn reach_before(&self, symbols: &[Symbol], place: u64) -> u64 {
        let before = |name: &usize| symbols[*name].value < place;
        let last = self.all.partition_point(before).checked_sub(1);
        last.and_then(|last| self.ends.get(last))
            .copied()
            .unwrap_or(0)
    }
}

/// Where the symbol ends; what has no length is one byte long.
fn end(symbol: &Symbol) -> u64 {
    symbol.value.saturating_add(symbol.len.max(1))
}

fn best<'a>(
    symbols: &[Symbol],
    mut names: impl Iterator<Item = &'a usize> + Clone,
) -> Option<usize> {
    let global = |name: &&usize| !symbols[**name].is_local();
    names.clone().find(global).or_else(|| names.next()).copied()
}
