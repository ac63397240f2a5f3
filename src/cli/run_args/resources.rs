//! Limits that only a cgroup can enforce. They are checked as in Docker; the plan warns that each
//! is discarded until a cgroup is delegated.

use std::collections::BTreeMap;

use clap::Args;

use super::process::parse_int;
use super::{invalid_argument, refused, size};
use crate::cli::CliError;
use crate::plan::request::Limits;

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub struct ResourceArgs {
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<String>,
    /// Block IO weight (relative device weight)
    #[arg(long, value_name = "DEVICE:WEIGHT")]
    blkio_weight_device: Vec<String>,
    /// Optional parent cgroup for the container
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
    /// Limit CPU CFS (Completely Fair Scheduler) period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<String>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<String>,
    /// Limit CPU real-time period in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<String>,
    /// Limit CPU real-time runtime in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_runtime: Option<String>,
    /// CPU shares (relative weight)
    #[arg(short, long, value_name = "SHARES")]
    cpu_shares: Option<String>,
    /// Number of CPUs
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Limit read rate (bytes per second) from a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_bps: Vec<String>,
    /// Limit read rate (IO per second) from a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_iops: Vec<String>,
    /// Limit write rate (bytes per second) to a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_bps: Vec<String>,
    /// Limit write rate (IO per second) to a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_iops: Vec<String>,
    /// Kernel memory limit (gone from the kernel; accepted and without effect)
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    /// Memory limit
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory soft limit
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Tune container memory swappiness (0 to 100)
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    memory_swappiness: Option<String>,
    /// Disable OOM Killer
    #[arg(long)]
    oom_kill_disable: bool,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<String>,
}

impl ResourceArgs {
    /// The limits.
    ///
    /// # Errors
    /// One that is wrong, or in conflict with another: exit 125.
    pub fn parse(self) -> Result<Limits, CliError> {
        let limits = Limits {
            memory_bytes: bytes("-m, --memory", self.memory.as_deref())?,
            memory_swap_bytes: match self.memory_swap.as_deref() {
                Some("-1") => -1,
                other => i64::try_from(bytes("--memory-swap", other)?).unwrap_or(i64::MAX),
            },
            memory_reservation_bytes: bytes("--memory-reservation", self.memory_reservation.as_deref())?,
            memory_swappiness: self
                .memory_swappiness
                .as_deref()
                .map(|text| parse_int("--memory-swappiness", text))
                .transpose()?,
            oom_kill_disable: self.oom_kill_disable,
            cpu_nanos: match self.cpus.as_deref() {
                None => 0,
                Some(text) => {
                    size::parse_cpus(text).map_err(|reason| invalid_argument("--cpus", text, reason))?
                }
            },
            cpu_shares: unsigned("-c, --cpu-shares", self.cpu_shares.as_deref())?,
            cpu_period_us: unsigned("--cpu-period", self.cpu_period.as_deref())?,
            cpu_quota_us: self.cpu_quota.as_deref().map_or(Ok(0), |text| parse_int("--cpu-quota", text))?,
            cpu_realtime: unsigned("--cpu-rt-period", self.cpu_rt_period.as_deref())? > 0
                || unsigned("--cpu-rt-runtime", self.cpu_rt_runtime.as_deref())? > 0,
            cpuset_cpus: cpu_set("CpusetCpus", self.cpuset_cpus)?,
            cpuset_mems: cpu_set("CpusetMems", self.cpuset_mems)?,
            pids: self.pids_limit.as_deref().map_or(Ok(0), |text| parse_int("--pids-limit", text))?,
            blkio_weight: u16::try_from(unsigned("--blkio-weight", self.blkio_weight.as_deref())?)
                .unwrap_or(u16::MAX),
            blkio_devices: devices([
                ("--blkio-weight-device", self.blkio_weight_device),
                ("--device-read-bps", self.device_read_bps),
                ("--device-read-iops", self.device_read_iops),
                ("--device-write-bps", self.device_write_bps),
                ("--device-write-iops", self.device_write_iops),
            ])?,
            cgroup_parent: self.cgroup_parent.unwrap_or_default(),
        };
        check(&limits)?;
        Ok(limits)
    }
}

/// Docker's rules between limits.
fn check(limits: &Limits) -> Result<(), CliError> {
    let Limits { memory_bytes, memory_swap_bytes, memory_reservation_bytes, .. } = limits;
    let swap = u64::try_from(*memory_swap_bytes).unwrap_or(u64::MAX);
    let rules = [
        (
            *memory_swap_bytes > 0 && *memory_bytes == 0,
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        (
            *memory_swap_bytes > 0 && swap < *memory_bytes,
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            *memory_bytes > 0 && memory_reservation_bytes > memory_bytes,
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        (
            limits.memory_swappiness.is_some_and(|value| !(-1..=100).contains(&value)),
            "Invalid value for memory swappiness, valid range is 0-100",
        ),
        (
            limits.cpu_nanos > 0 && (limits.cpu_period_us > 0 || limits.cpu_quota_us != 0),
            "Conflicting options: Nano CPUs and CPU Period cannot both be set.",
        ),
        (
            limits.blkio_weight > 0 && !(10..=1000).contains(&limits.blkio_weight),
            "Range of blkio weight is from 10 to 1000",
        ),
    ];
    match rules.into_iter().find(|(broken, _)| *broken) {
        Some((_, message)) => Err(refused(message)),
        None => Ok(()),
    }
}

fn bytes(flag: &str, text: Option<&str>) -> Result<u64, CliError> {
    text.map_or(Ok(0), |text| size::parse_bytes(text).map_err(|reason| invalid_argument(flag, text, reason)))
}

fn unsigned(flag: &str, text: Option<&str>) -> Result<u64, CliError> {
    let number = text.map_or(Ok(0), |text| parse_int(flag, text))?;
    u64::try_from(number).map_err(|_| invalid_argument(flag, text.unwrap_or_default(), "it is negative"))
}

/// `0-3,5`: numbers and ranges.
fn cpu_set(what: &str, text: Option<String>) -> Result<String, CliError> {
    let text = text.unwrap_or_default();
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if first <= last)
    };
    if text.is_empty() || text.split(',').all(range) {
        Ok(text)
    } else {
        Err(refused(format!("invalid {what} value: {text}")))
    }
}

fn devices<const N: usize>(
    flags: [(&'static str, Vec<String>); N],
) -> Result<BTreeMap<String, Vec<String>>, CliError> {
    let mut all = BTreeMap::new();
    for (flag, texts) in flags {
        for text in &texts {
            let valid = text
                .split_once(':')
                .is_some_and(|(path, rate)| path.starts_with("/dev/") && size::parse_bytes(rate).is_ok());
            if !valid {
                return Err(invalid_argument(flag, text, format!("bad format: {text}")));
            }
        }
        if !texts.is_empty() {
            all.insert(flag.trim_start_matches('-').to_owned(), texts);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let args = ResourceArgs {
            memory: Some("512m".into()),
            memory_swap: Some("-1".into()),
            cpus: Some("1.5".into()),
            cpuset_cpus: Some("0-3,5".into()),
            pids_limit: Some("100".into()),
            device_read_bps: vec!["/dev/sda:1mb".into()],
            ..ResourceArgs::default()
        };
        let limits = args.parse().expect("valid");
        assert_eq!(limits.memory_bytes, 512 << 20);
        assert_eq!(limits.memory_swap_bytes, -1);
        assert_eq!(limits.cpu_nanos, 1_500_000_000);
        assert_eq!(limits.cpuset_cpus, "0-3,5");
        assert_eq!(limits.pids, 100);
        assert_eq!(limits.blkio_devices["device-read-bps"], ["/dev/sda:1mb"]);
        assert_eq!(ResourceArgs::default().parse().ok(), Some(Limits::default()));
    }

    #[test]
    fn wrong_limits() {
        let args = ResourceArgs::default;
        let table = [
            (
                ResourceArgs { memory: Some("x".into()), ..args() },
                "invalid argument \"x\" for \"-m, --memory\" flag: invalid size: 'x'",
            ),
            (
                ResourceArgs { memory_swap: Some("1g".into()), ..args() },
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ),
            (
                ResourceArgs { memory: Some("2g".into()), memory_swap: Some("1g".into()), ..args() },
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                ResourceArgs { cpus: Some("x".into()), ..args() },
                "invalid argument \"x\" for \"--cpus\" flag: failed to parse x as a rational number",
            ),
            (ResourceArgs { cpuset_cpus: Some("3-1".into()), ..args() }, "invalid CpusetCpus value: 3-1"),
            (
                ResourceArgs { pids_limit: Some("x".into()), ..args() },
                "invalid argument \"x\" for \"--pids-limit\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                ResourceArgs { blkio_weight: Some("5".into()), ..args() },
                "Range of blkio weight is from 10 to 1000",
            ),
        ];
        for (args, message) in table {
            let error = args.parse().expect_err(message);
            assert_eq!((error.message(), error.exit.code()), (message, 125));
        }
    }
}
