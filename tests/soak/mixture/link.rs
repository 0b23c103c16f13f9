//! The ways to one host: two endpoints, which are bad together or one at a time.

use super::{Mixture, ms};
use crate::{
    common::LONG,
    world::{look, peer_is},
};
use rand::{Rng, rngs::StdRng};
use std::{thread, time::Duration};
use testkit::{
    proc::until,
    proxy::{BOTH, Proxy, Way, Weather},
};

/// All endpoints of a host.
pub struct Link(pub Vec<Proxy>);

impl Link {
    pub fn set(&self, ways: &[Way], weather: Weather) {
        self.0.iter().for_each(|endpoint| endpoint.set(ways, weather));
    }

    pub fn cut(&self) {
        self.0.iter().for_each(Proxy::cut);
    }

    pub fn half_open(&self, for_listener: bool) {
        self.0
            .iter()
            .for_each(|endpoint| endpoint.half_open(for_listener));
    }

    /// Nobody gets through, and both ends are told.
    pub fn part(&self) {
        self.0.iter().for_each(|endpoint| endpoint.refuse(true));
        self.cut();
    }

    pub fn calm(&self) {
        self.0.iter().for_each(Proxy::calm);
    }
}

impl Mixture {
    /// One endpoint of the replica goes bad and stays so: the stream goes on over the other, and nothing is stale of it.
    pub(super) fn endpoint(&mut self, why: &str, rng: &mut StdRng) {
        let production = self.production();
        // Its silence is found out by waiting, and the journal has room for what is written meanwhile.
        self.world.load.rest = Duration::from_millis(20);
        let endpoints = &self.links[super::index(self.replica())].0;
        let bad = rng.random_range(0..endpoints.len());
        let (bad, good) = (&endpoints[bad], &endpoints[1 - bad]);
        let fine = Weather::default();
        let weather = match rng.random_range(0..4) {
            0 => None,
            1 => Some(Weather {
                stalled: true,
                ..fine
            }),
            2 => Some(Weather {
                corrupted: 1000,
                ..fine
            }),
            // Handshakes and greetings pass, and then nothing more.
            _ => Some(Weather { passes: 6000, ..fine }),
        };
        // So that the bad one is the next to be tried; else it may be the one that is not in use.
        let cuts = rng.random();
        let lasts = ms(rng, 0..1000);
        let why = format!("{why}: an endpoint is {weather:?}");
        self.world.under_load(&why, rng, |pair, looks| {
            match weather {
                None => {
                    bad.refuse(true);
                    bad.cut();
                }
                Some(weather) => bad.set(&BOTH, weather),
            }
            if cuts {
                good.cut();
            }
            let head = pair.cursor(production, "appended").0;
            let _ = good.take();
            until(&format!("{why}: records to arrive"), LONG * 2, || {
                *looks += 1;
                let look = look(pair, production, &why);
                thread::sleep(Duration::from_millis(100));
                (look.at_replica("received") > head + 20 && good.take() > 0).then_some(())
            });
            thread::sleep(lasts);
            bad.calm();
            peer_is(pair, production, "connected", &why, looks);
        });
        self.world.load.rest = super::REST;
        self.nothing_stale(&why);
        self.count("endpoints that went bad");
    }
}
