//! `hearth systemd`: a hardened unit for this server, on stdout.

use super::say;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct Systemd {
    /// The settings file that the unit names
    #[arg(long, value_name = "FILE", default_value = "/etc/hearth/hearth.toml")]
    settings: PathBuf,
    /// A folder with models, which is all that the server may read beside its settings
    #[arg(long, value_name = "DIR", default_value = "/var/lib/hearth/models")]
    models: PathBuf,
    /// Leave out what keeps a GPU's driver from working (private devices, no writable and executable memory)
    #[arg(long)]
    gpu: bool,
    /// No network but this machine's own
    #[arg(long)]
    air_gapped: bool,
    /// Print hearth.socket instead: systemd holds the port, so that a restart loses no connection
    #[arg(long, value_name = "ADDR:PORT")]
    socket: Option<String>,
}

impl Systemd {
    pub fn run(self) -> Result<()> {
        match &self.socket {
            Some(address) => say!("{}", socket(address)),
            None => say!("{}", self.service(&std::env::current_exe()?.display().to_string())),
        }
        Ok(())
    }

    fn service(&self, exe: &str) -> String {
        let devices = if self.gpu {
            "# A GPU's driver needs its devices, and memory that is written and run.\nSupplementaryGroups=video render"
        } else {
            "PrivateDevices=yes\nMemoryDenyWriteExecute=yes\nDevicePolicy=closed"
        };
        let network =
            if self.air_gapped { "IPAddressDeny=any\nIPAddressAllow=localhost" } else { "# IPAddressDeny=any" };
        format!(
            "\
# /etc/systemd/system/hearth.service
# systemd-analyze security hearth.service tells what is left open.
[Unit]
Description=hearth: a model behind an OpenAI-compatible API
Documentation=man:systemd.exec(5)
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={exe} serve --config {settings}
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec=30
Restart=on-failure
RestartSec=2
# Longer than drain_timeout: running answers may finish.
TimeoutStopSec=40
WorkingDirectory=/var/lib/hearth

DynamicUser=yes
StateDirectory=hearth
RuntimeDirectory=hearth
UMask=0077
BindReadOnlyPaths=-{models}
ReadOnlyPaths=-{folder}

LimitCORE=0
LimitNOFILE=65536
LimitMEMLOCK=infinity
TasksMax=512
OOMPolicy=continue

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateUsers=yes
{devices}
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter=sched_setaffinity setrlimit prlimit64 setpriority mlock mlock2 munlock mlockall
SystemCallErrorNumber=EPERM
{network}

[Install]
WantedBy=multi-user.target",
            settings = self.settings.display(),
            models = self.models.display(),
            folder = self.settings.parent().map(|folder| folder.display().to_string()).unwrap_or_default(),
        )
    }
}

fn socket(address: &str) -> String {
    format!(
        "\
# /etc/systemd/system/hearth.socket
[Unit]
Description=hearth's port, held across restarts

[Socket]
ListenStream={address}
NoDelay=yes
Backlog=1024

[Install]
WantedBy=sockets.target"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(gpu: bool, air_gapped: bool) -> String {
        let (settings, models) = ("/etc/hearth/hearth.toml".into(), "/srv/models".into());
        Systemd { settings, models, gpu, air_gapped, socket: None }.service("/usr/bin/hearth")
    }

    #[test]
    fn a_unit_is_lines_of_keys_and_values() {
        for text in [unit(false, false), unit(true, true), socket("127.0.0.1:8080")] {
            for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '['])) {
                assert!(line.split_once('=').is_some_and(|(key, _)| key.chars().all(char::is_alphanumeric)), "{line}");
            }
        }
        assert!(unit(false, false).contains("ExecStart=/usr/bin/hearth serve --config /etc/hearth/hearth.toml\n"));
        assert!(!unit(true, false).contains("MemoryDenyWriteExecute"));
        assert!(unit(false, true).contains("IPAddressDeny=any\nIPAddressAllow=localhost"));
    }
}
