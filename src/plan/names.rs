//! Names for containers that were given none: an adjective and the surname of somebody who found
//! something out, as Docker's users expect.

/// The name that a random number stands for, `adjective_surname`. The caller tries another number
/// when the name is taken.
#[must_use]
pub fn generate(random: u64) -> String {
    // Both lists are far shorter than 2^32, so the remainders' bias is nothing anybody could see.
    let pick = |words: &[&'static str], half: u64| words[half as usize % words.len()];
    let (high, low) = (random >> 32, random & 0xffff_ffff);
    format!("{}_{}", pick(&ADJECTIVES, high), pick(&SURNAMES, low))
}

#[rustfmt::skip]
const ADJECTIVES: [&str; 125] = [
    "able", "agile", "airy", "amber", "ample", "apt", "artful", "avid", "awake", "balmy", "bold", "brave",
    "breezy", "bright", "brisk", "calm", "candid", "careful", "cheery", "civil", "clear", "clever", "cosy",
    "crisp", "curious", "dapper", "daring", "deft", "devout", "dreamy", "eager", "earnest", "easy", "elated",
    "fair", "faithful", "fearless", "festive", "fine", "fleet", "fluent", "fond", "frank", "free", "fresh",
    "frugal", "gallant", "genial", "gentle", "gifted", "glad", "golden", "good", "graceful", "grand", "happy",
    "hardy", "hearty", "honest", "hopeful", "humble", "ideal", "jaunty", "jolly", "jovial", "keen", "kind",
    "lively", "loyal", "lucid", "lucky", "mellow", "merry", "mighty", "mild", "modest", "neat", "nimble",
    "noble", "patient", "placid", "playful", "plucky", "polite", "proud", "prudent", "quaint", "quick",
    "quiet", "radiant", "ready", "regal", "robust", "rosy", "serene", "sharp", "shiny", "sincere", "smart",
    "snug", "sober", "solid", "spry", "stable", "steady", "stoic", "sturdy", "subtle", "sunny", "swift",
    "tender", "thrifty", "tidy", "tranquil", "trusty", "upbeat", "upright", "valiant", "vital", "vivid",
    "warm", "wise", "witty", "worthy", "zesty",
];

#[rustfmt::skip]
const SURNAMES: [&str; 251] = [
    "abel", "agassi", "agnesi", "airy", "alexander", "alfven", "allen", "ampere", "anning", "arago",
    "archimedes", "aryabhata", "avogadro", "ayrton", "babbage", "backus", "banach", "banks", "banneker",
    "bardeen", "bassi", "becquerel", "bell", "bernoulli", "bessel", "bethe", "bhabha", "blackwell", "boole",
    "born", "bose", "bragg", "brahe", "brattain", "braun", "brooks", "bunsen", "burnell", "cantor", "carson",
    "carver", "cauchy", "cavendish", "celsius", "cerf", "chadwick", "chandra", "chang", "chatelet",
    "chebyshev", "chern", "church", "clarke", "codd", "colden", "cori", "cox", "crick", "curie", "curtis",
    "dahl", "dalton", "darwin", "davy", "dedekind", "descartes", "diesel", "dijkstra", "diophantus", "dirac",
    "doppler", "dyson", "easley", "eckert", "eddington", "edison", "einstein", "elion", "ellis", "engelbart",
    "erdos", "euclid", "euler", "faraday", "fermat", "fermi", "feynman", "fibonacci", "fisher", "fizeau",
    "floyd", "fourier", "franklin", "fraunhofer", "frege", "fresnel", "galileo", "galois", "galvani", "gauss",
    "germain", "gibbs", "goddard", "godel", "golgi", "goodall", "gosling", "granville", "gray", "green",
    "hadamard", "haldane", "halley", "hamilton", "hamming", "hardy", "harvey", "hawking", "heaviside",
    "heisenberg", "hermite", "herschel", "hertz", "hilbert", "hodgkin", "hooke", "hoover", "hopper", "hubble",
    "humboldt", "hutton", "huygens", "hypatia", "jackson", "jacobi", "jennings", "johnson", "joliot", "joule",
    "kalman", "kare", "kelvin", "kepler", "khayyam", "kilby", "kirchhoff", "klein", "knuth", "koch",
    "kovalevskaya", "lagrange", "lamarr", "lamport", "landau", "laplace", "lavoisier", "leavitt", "legendre",
    "leibniz", "lewis", "liskov", "lister", "lorenz", "lovelace", "lyell", "margulis", "markov", "maxwell",
    "mayer", "mccarthy", "mcclintock", "mclaren", "meitner", "mendel", "mendeleev", "merian", "milner",
    "minkowski", "mirzakhani", "mitchell", "moore", "morse", "napier", "nash", "neumann", "newton", "nobel",
    "noether", "noyce", "oersted", "ohm", "oppenheimer", "panini", "pascal", "pasteur", "pauli", "pauling",
    "payne", "peano", "perlman", "planck", "poincare", "poisson", "priestley", "ptolemy", "pythagoras",
    "raman", "ramanujan", "rayleigh", "riemann", "ritchie", "roentgen", "rubin", "rutherford", "sabin",
    "sagan", "salk", "sammet", "schrodinger", "shannon", "shockley", "sinoussi", "snell", "somerville",
    "stokes", "swartz", "tesla", "tharp", "thompson", "torvalds", "tu", "turing", "varahamihira", "vaughan",
    "vesalius", "villani", "volhard", "volta", "wallace", "watt", "weyl", "wiles", "williams", "wing",
    "wirth", "wright", "wu", "yalow", "yonath", "young", "zhang",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::id::Name;

    #[test]
    fn every_pair_is_a_valid_name_and_its_own() {
        let mut names = BTreeSet::new();
        for high in 0..ADJECTIVES.len() as u64 {
            for low in 0..SURNAMES.len() as u64 {
                let name = generate(high << 32 | low);
                assert!(name.parse::<Name>().is_ok(), "{name}");
                assert!(names.insert(name));
            }
        }
        assert!(ADJECTIVES.len() >= 80 && SURNAMES.len() >= 160);
    }

    #[test]
    fn a_number_always_gives_the_same_name() {
        assert_eq!(generate(0), format!("{}_{}", ADJECTIVES[0], SURNAMES[0]));
        assert_eq!(generate(u64::MAX), generate(u64::MAX));
    }
}
