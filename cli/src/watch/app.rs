//! The state of the screen: the news so far, and the keys that were pressed.

use std::collections::{BTreeMap, VecDeque};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

use crate::model::{Held, Page, Repetitions, Report, Resource, Step, Told};
use crate::stream::Message;
use crate::watch::feed::News;

/// How many events are kept, and how many latencies of each resource. The page of the browser keeps as many.
const EVENTS: usize = 200;
const LATENCIES: usize = 300;
/// How many steps of closing are kept.
const STEPS: usize = 1_000;
/// The longest text to filter by.
const FILTER: usize = 60;

/// The screen's state.
#[derive(Debug, Default)]
pub(crate) struct App {
    pub(crate) address: String,
    pub(crate) page: Page,
    pub(crate) holders: Vec<Held>,
    pub(crate) events: VecDeque<Told>,
    pub(crate) latency: BTreeMap<String, VecDeque<(f64, Option<f64>)>>,
    pub(crate) steps: Vec<Step>,
    pub(crate) report: Option<Report>,
    /// Why there is no news. `None` while there is.
    pub(crate) lost: Option<String>,
    /// The index of the chosen one of the resources that are shown.
    pub(crate) chosen: usize,
    pub(crate) filter: String,
    pub(crate) is_filtering: bool,
    pub(crate) is_helping: bool,
    repetitions: Repetitions,
    /// Whether there was a status yet.
    has_begun: bool,
}

impl App {
    pub(crate) fn new(address: &str) -> Self {
        App { address: address.to_owned(), ..App::default() }
    }

    /// The resources that the filter leaves.
    pub(crate) fn resources(&self) -> Vec<&Resource> {
        self.page.status.resources.iter().filter(|one| self.fits(&[&one.name, &one.endpoint, &one.state])).collect()
    }

    /// The chosen resource.
    pub(crate) fn current(&self) -> Option<&Resource> {
        self.resources().get(self.chosen).copied()
    }

    /// The events that the filter leaves, the newest first.
    pub(crate) fn shown_events(&self) -> impl Iterator<Item = &Told> {
        self.events.iter().rev().filter(|told| self.fits(&[&told.resource, &told.what, &told.text]))
    }

    /// Whether one of the texts has the filter's text in it.
    fn fits(&self, texts: &[&str]) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    /// Takes a piece of news.
    pub(crate) fn take(&mut self, news: News) {
        match news {
            News::Lost(why) => self.lost = Some(why),
            News::Message(Message { name, data }) => {
                self.lost = None;
                // A message that this version does not understand is passed over.
                let data: Value = serde_json::from_str(&data).unwrap_or_default();
                match &*name {
                    "snapshot" => {
                        self.events.clear();
                        self.repetitions = Repetitions::default();
                        self.latency.clear();
                        self.steps.clear();
                        self.report = None;
                        for event in data["events"].as_array().map(Vec::as_slice).unwrap_or_default() {
                            self.event(event);
                        }
                        // The status is a part of a snapshot, and holders and latencies stand beside it.
                        let mut page = data["status"].clone();
                        if let Some(fields) = page.as_object_mut() {
                            for beside in ["holders", "latency"] {
                                fields.insert(beside.to_owned(), data[beside].clone());
                            }
                        }
                        self.page(page);
                    }
                    "status" => self.page(data),
                    "event" => self.event(&data),
                    "closing" => self.page.closing = true,
                    "step" => {
                        if let Ok(step) = serde_json::from_value(data)
                            && self.steps.len() < STEPS
                        {
                            self.steps.push(step);
                        }
                    }
                    "closed" => self.report = serde_json::from_value(data).ok(),
                    _ => {}
                }
            }
        }
    }

    fn page(&mut self, data: Value) {
        let Ok(mut page) = serde_json::from_value::<Page>(data) else { return };
        for (name, points) in std::mem::take(&mut page.latency) {
            let known = self.latency.entry(name).or_default();
            let newest = known.back().map_or(f64::MIN, |(at, _)| *at);
            known.extend(points.into_iter().filter(|(at, _)| *at > newest));
            known.drain(..known.len().saturating_sub(LATENCIES));
        }
        self.latency.retain(|name, _| page.status.resources.iter().any(|one| one.name == *name));
        self.holders = page.holders.take().unwrap_or_default();
        self.page = page;
        if !std::mem::replace(&mut self.has_begun, true) {
            // The worst one is chosen at first, or else one that is used.
            let resources = &self.page.status.resources;
            let first = |is_it: fn(&Resource) -> bool| resources.iter().position(is_it);
            self.chosen = first(|one| one.state == "broken").or_else(|| first(|one| one.state != "idle")).unwrap_or(0);
        }
        self.stay_inside();
    }

    fn event(&mut self, event: &Value) {
        if !self.repetitions.is_news(event) {
            return;
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Told::of(event));
    }

    fn stay_inside(&mut self) {
        self.chosen = self.chosen.min(self.resources().len().saturating_sub(1));
    }

    /// Obeys a key. Answers whether the command is to end.
    pub(crate) fn press(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return true;
        }
        if self.is_filtering {
            match key.code {
                KeyCode::Esc => (self.filter, self.is_filtering) = (String::new(), false),
                KeyCode::Enter => self.is_filtering = false,
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) if self.filter.len() < FILTER => self.filter.push(c),
                _ => {}
            }
            self.stay_inside();
            return false;
        }
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Char('?') => self.is_helping = !self.is_helping,
            KeyCode::Esc if self.is_helping => self.is_helping = false,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/') => (self.is_filtering, self.is_helping) = (true, false),
            KeyCode::Up | KeyCode::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.chosen += 1,
            KeyCode::PageUp => self.chosen = self.chosen.saturating_sub(10),
            KeyCode::PageDown => self.chosen += 10,
            KeyCode::Home => self.chosen = 0,
            KeyCode::End => self.chosen = usize::MAX,
            _ => {}
        }
        self.stay_inside();
        false
    }
}
