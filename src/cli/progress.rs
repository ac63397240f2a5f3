//! The progress of a pull or push: a bar a layer on a terminal, Docker's lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::format::human_size;
use crate::id::Digest;
use crate::image::Reference;
use crate::image::registry::{LayerEvent, Progress};

/// How often a bar is drawn anew.
const FRAMES_A_SECOND: u8 = 10;
const BAR: &str = "{prefix}: {msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const LINE: &str = "{prefix}: {msg}";

/// Where progress goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Of `pull` and `push`, as Docker's.
    Stdout,
    /// Of `run` and `create`, whose standard output is the container's.
    Stderr,
}

/// Shows progress, and counts what was reused.
pub struct Show {
    output: Output,
    quiet: bool,
    /// What is said of a layer that is done.
    words: Words,
    bars: Option<MultiProgress>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Words {
    waiting: &'static str,
    transferring: &'static str,
    exists: &'static str,
    complete: &'static str,
}

const PULL: Words = Words {
    waiting: "Pulling fs layer",
    transferring: "Downloading",
    exists: "Already exists",
    complete: "Pull complete",
};
const PUSH: Words = Words {
    waiting: "Preparing",
    transferring: "Pushing",
    exists: "Layer already exists",
    complete: "Pushed",
};

#[derive(Debug, Default)]
struct State {
    bars: HashMap<Digest, ProgressBar>,
    layers: usize,
    reused: usize,
    resumed_bytes: u64,
    transferred_bytes: u64,
}

impl Show {
    /// For a pull.
    #[must_use]
    pub fn new(output: Output, quiet: bool) -> Self {
        let is_terminal = match output {
            Output::Stdout => std::io::stdout().is_terminal(),
            Output::Stderr => std::io::stderr().is_terminal(),
        };
        let target = match output {
            Output::Stdout => ProgressDrawTarget::stdout_with_hz(FRAMES_A_SECOND),
            Output::Stderr => ProgressDrawTarget::stderr_with_hz(FRAMES_A_SECOND),
        };
        // A terminal that cannot move its cursor (TERM=dumb, or none) gets lines.
        let bars = (is_terminal && !quiet).then(|| MultiProgress::with_draw_target(target));
        let bars = bars.filter(|bars| !bars.is_hidden());
        Self { output, quiet, words: PULL, bars, state: Mutex::default() }
    }

    /// For a push.
    #[must_use]
    pub fn of_push(quiet: bool) -> Self {
        Self { words: PUSH, ..Self::new(Output::Stdout, quiet) }
    }

    /// Leaves the bars as they are and the cursor below them.
    pub fn finish(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for bar in state.bars.values().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }

    /// Says on standard error what did not have to be transferred.
    pub fn summary(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.quiet || state.layers == 0 || (state.reused == 0 && state.resumed_bytes == 0) {
            return;
        }
        let resumed = if state.resumed_bytes == 0 {
            String::new()
        } else {
            format!(", {} left by an earlier pull", human_size(state.resumed_bytes))
        };
        eprintln!(
            "Reused {} of {} layers{resumed}; transferred {}",
            state.reused,
            state.layers,
            human_size(state.transferred_bytes)
        );
    }

    fn say(&self, text: &str) {
        match (self.quiet, &self.bars, self.output) {
            (true, _, _) => {}
            // A terminal that is gone is no reason to stop.
            (false, Some(bars), _) => drop(bars.println(text)),
            (false, None, Output::Stdout) => println!("{text}"),
            (false, None, Output::Stderr) => eprintln!("{text}"),
        }
    }

    /// Shows what a layer's state is now, where there is a bar on it.
    fn state_of(&self, state: &mut State, digest: &Digest, text: &str) {
        if self.quiet {
            return;
        }
        match (&self.bars, self.output) {
            (Some(_), _) => self.bar(state, digest).set_message(text.to_owned()),
            (None, Output::Stdout) => println!("{}: {text}", digest.short()),
            (None, Output::Stderr) => eprintln!("{}: {text}", digest.short()),
        }
    }

    fn bar(&self, state: &mut State, digest: &Digest) -> ProgressBar {
        let bar = state.bars.entry(digest.clone()).or_insert_with(|| {
            let bar = ProgressBar::new(0).with_style(style(LINE)).with_prefix(digest.short().to_owned());
            match &self.bars {
                Some(bars) => bars.add(bar),
                None => bar,
            }
        });
        bar.clone()
    }

    fn end(&self, state: &mut State, digest: &Digest, text: &str) {
        if self.bars.is_some() {
            let bar = self.bar(state, digest);
            bar.set_style(style(LINE));
            bar.finish_with_message(text.to_owned());
        } else {
            self.state_of(state, digest, text);
        }
    }
}

impl Progress for Show {
    fn image(&self, reference: &Reference) {
        if self.words == PULL {
            let what =
                reference.digest().map(ToString::to_string).or_else(|| reference.tag().map(str::to_owned));
            self.say(&format!("{}: Pulling from {}", what.unwrap_or_default(), reference.path()));
        } else {
            self.say(&format!("The push refers to repository [{}]", reference.repository()));
        }
    }

    fn layer(&self, digest: &Digest, event: &LayerEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        match event {
            LayerEvent::Waiting { total } => {
                state.layers += 1;
                self.state_of(state, digest, self.words.waiting);
                if self.bars.is_some() {
                    self.bar(state, digest).set_length(*total);
                }
            }
            LayerEvent::Exists => {
                // A push waits with each layer first.
                state.layers += usize::from(self.words == PULL);
                state.reused += 1;
                self.end(state, digest, self.words.exists);
            }
            LayerEvent::Mounted { from } => {
                state.reused += 1;
                self.end(state, digest, &format!("Mounted from {from}"));
            }
            LayerEvent::Resumed { bytes } => {
                state.resumed_bytes += bytes;
                if self.bars.is_some() {
                    self.bar(state, digest).inc(*bytes);
                } else {
                    self.state_of(state, digest, &format!("Resuming after {}", human_size(*bytes)));
                }
            }
            LayerEvent::Transferred { bytes } => {
                state.transferred_bytes += bytes;
                if self.bars.is_some() {
                    let bar = self.bar(state, digest);
                    if bar.position() == 0 || bar.message() != self.words.transferring {
                        bar.set_style(style(BAR));
                        bar.set_message(self.words.transferring);
                    }
                    bar.inc(*bytes);
                }
            }
            LayerEvent::Retrying { reason } => self.state_of(state, digest, &format!("Retrying: {reason}")),
            LayerEvent::Downloaded => self.state_of(state, digest, "Download complete"),
            LayerEvent::Complete => self.end(state, digest, self.words.complete),
        }
    }
}

/// A style of one of the templates above, which a test checks.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [BAR, LINE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
