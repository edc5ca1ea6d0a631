//! Histograms of durations, by which every request is measured four times.
//!
//! The prometheus crate's own take five locked instructions an observation, so that a scrape sees all of it or nothing.
//! These take two, and a scrape in between sees one more observation than its sum has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::Opts;
use prometheus::core::{Describer as _, Metric, MetricVec, MetricVecBuilder};
use prometheus::proto::{Bucket, Histogram, LabelPair, MetricType};

/// One histogram; clones are the same one.
#[derive(Clone, Debug)]
pub struct Times(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    labels: Vec<LabelPair>,
    buckets: Box<[Counted]>,
    /// Observations beyond all of them.
    beyond: AtomicU64,
    /// The sum of all observations in microseconds, each rounded: enough for 584,000 years.
    micros: AtomicU64,
}

/// One bucket, and the observations that are in none before it.
#[derive(Debug)]
struct Counted {
    /// Its upper bound in nanoseconds.
    most: u64,
    count: AtomicU64,
}

impl Times {
    pub fn observe(&self, time: Duration) {
        let Inner { buckets, beyond, micros, .. } = &*self.0;
        let time = in_nanos(time);
        let bucket = buckets.iter().find(|bucket| time <= bucket.most);
        bucket.map_or(beyond, |bucket| &bucket.count).fetch_add(1, Ordering::Relaxed);
        micros.fetch_add(time.saturating_add(500) / 1000, Ordering::Relaxed);
    }

    /// Observations, and their sum in seconds.
    #[cfg(test)]
    pub fn seen(&self) -> (u64, f64) {
        let metric = self.metric();
        let histogram = metric.get_histogram();
        (histogram.get_sample_count(), histogram.get_sample_sum())
    }
}

fn in_nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Metric for Times {
    fn metric(&self) -> prometheus::proto::Metric {
        let Inner { labels, buckets, beyond, micros } = &*self.0;
        let mut count = 0;
        let told = buckets.iter().map(|bucket| {
            count += bucket.count.load(Ordering::Relaxed);
            let mut told = Bucket::default();
            told.set_cumulative_count(count);
            told.set_upper_bound(Duration::from_nanos(bucket.most).as_secs_f64());
            told
        });
        let told = told.collect();
        count += beyond.load(Ordering::Relaxed);
        let mut histogram = Histogram::default();
        histogram.set_bucket(told);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(Duration::from_micros(micros.load(Ordering::Relaxed)).as_secs_f64());
        let mut metric = prometheus::proto::Metric::from_label(labels.clone());
        metric.set_histogram(histogram);
        metric
    }
}

/// Those of one name, by their labels.
pub(super) type TimesVec = MetricVec<Builder>;

#[derive(Clone, Debug)]
pub(super) struct Builder {
    /// Upper bounds of the buckets in seconds, the least first.
    bounds: &'static [f64],
}

impl MetricVecBuilder for Builder {
    type M = Times;
    type P = Opts;

    fn build<V: AsRef<str>>(&self, opts: &Opts, values: &[V]) -> prometheus::Result<Times> {
        let mut labels: Vec<LabelPair> = Vec::new();
        for (name, value) in opts.describe()?.variable_labels.into_iter().zip(values) {
            let mut label = LabelPair::default();
            label.set_name(name);
            label.set_value(value.as_ref().to_owned());
            labels.push(label);
        }
        labels.sort_unstable_by(|one, other| one.name().cmp(other.name()));
        let bucket =
            |bound: &f64| Counted { most: in_nanos(Duration::from_secs_f64(*bound)), count: AtomicU64::new(0) };
        Ok(Times(Arc::new(Inner {
            labels,
            buckets: self.bounds.iter().map(bucket).collect(),
            beyond: AtomicU64::new(0),
            micros: AtomicU64::new(0),
        })))
    }
}

/// `bounds`: upper bounds of the buckets in seconds, the least first.
pub(super) fn times(opts: Opts, labels: &[&str], bounds: &'static [f64]) -> prometheus::Result<TimesVec> {
    let opts = opts.variable_labels(labels.iter().copied().map(str::to_owned).collect());
    MetricVec::create(MetricType::HISTOGRAM, Builder { bounds }, opts)
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector as _;
    use prometheus::{Encoder as _, HistogramOpts, HistogramVec, TextEncoder};

    use super::*;

    const BOUNDS: &[f64] = &[0.000_05, 0.002_5, 0.25, 1.0, 600.0];

    fn text(collector: &impl prometheus::core::Collector) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&collector.collect(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn they_are_told_as_the_prometheus_crate_tells_its_own() {
        let ours = times(Opts::new("a_seconds", "Help"), &["route", "method"], BOUNDS).unwrap();
        let opts = HistogramOpts::new("a_seconds", "Help").buckets(BOUNDS.to_vec());
        let theirs = HistogramVec::new(opts, &["route", "method"]).unwrap();
        assert_eq!(ours.desc()[0].fq_name, theirs.desc()[0].fq_name);
        let labels = ["/v1/agents/", "GET"];
        for time in [0, 50, 51, 2_500, 250_000, 1_000_000, 600_000_001] {
            let time = Duration::from_micros(time);
            ours.with_label_values(&labels).observe(time);
            theirs.with_label_values(&labels).observe(time.as_secs_f64());
        }
        let told = text(&ours);
        assert_eq!(told, text(&theirs));
        assert!(told.contains("le=\"0.0025\"} 4") && told.contains("le=\"+Inf\"} 7"), "{told}");
    }

    #[test]
    fn what_is_shorter_than_a_microsecond_is_rounded_in_the_sum_and_counted_as_it_is() {
        let times = times(Opts::new("a_seconds", "Help"), &[], BOUNDS).unwrap().with_label_values::<&str>(&[]);
        for nanos in [499, 500, 50_001] {
            times.observe(Duration::from_nanos(nanos));
        }
        assert_eq!(times.seen(), (3, 0.000_051));
        assert_eq!(times.metric().get_histogram().get_bucket()[0].cumulative_count(), 2);
    }

    #[test]
    fn one_that_has_seen_nothing_is_told_too() {
        let times = times(Opts::new("a_seconds", "Help"), &[], BOUNDS).unwrap();
        assert_eq!(times.with_label_values::<&str>(&[]).seen(), (0, 0.0));
        assert!(text(&times).contains("a_seconds_count 0"));
    }
}
