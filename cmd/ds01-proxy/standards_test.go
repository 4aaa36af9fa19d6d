package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
)

// A control is one demand of a standard, and what meets it here.
type control struct {
	// standard and name are where the demand stands: baseline and restricted are the
	// Kubernetes Pod Security Standards, cis is chapter 5 of the CIS Docker Benchmark.
	standard, name string
	// demand is what it asks for.
	demand string
	// rule refuses what is asked for in host, which is HostConfig, or in an exec.
	rule, host, exec string
	// set is what the profile sets on a container that asks for nothing.
	set string
	// reason says why no rule about the host is needed.
	reason string
}

const (
	byBinds = "a path of the host is looked at where it is opened for the bind, since only its files tell whose it is"
	byUser  = "it protects the container's owner from the container, not the host from its owner"
	byQuota = "how much a user may take is their quota's and their slice's to say"
)

// controls are all controls of both standards.
var controls = []control{
	{standard: "baseline", name: "HostProcess", demand: "no process of a Windows host", reason: "there is none on Linux, and Engines there do not read Isolation"},
	{standard: "baseline", name: "Host Namespaces", demand: "no network of the host", rule: "host-network", host: `{"NetworkMode":"host"}`},
	{standard: "baseline", name: "Host Namespaces", demand: "no processes of the host", rule: "host-pid", host: `{"PidMode":"host"}`},
	{standard: "baseline", name: "Host Namespaces", demand: "no shared memory of the host", rule: "host-ipc", host: `{"IpcMode":"host"}`},
	{standard: "baseline", name: "Privileged Containers", demand: "none", rule: "refuse-privileged", host: `{"Privileged":true}`},
	{standard: "baseline", name: "Capabilities", demand: "none beside the usual", rule: "capabilities", host: `{"CapAdd":["SYS_ADMIN"]}`},
	{standard: "baseline", name: "Capabilities", demand: "all at once are more than the usual", rule: "capabilities", host: `{"CapAdd":["ALL"]}`},
	{standard: "baseline", name: "HostPath Volumes", demand: "none", reason: byBinds},
	{standard: "baseline", name: "Host Ports", demand: "none, or of a known list", rule: "published-ports", host: `{"PortBindings":{"80/tcp":[{"HostPort":"80"}]}}`},
	{standard: "baseline", name: "Host Probes / Lifecycle Hooks", demand: "no address of a host to probe", reason: "a health check is a command inside of the container"},
	{standard: "baseline", name: "AppArmor", demand: "the default profile or one of a list", rule: "security-opt", host: `{"SecurityOpt":["apparmor=unconfined"]}`},
	{standard: "baseline", name: "SELinux", demand: "no type beside the container's", rule: "security-opt", host: `{"SecurityOpt":["label=type:spc_t"]}`},
	{standard: "baseline", name: "SELinux", demand: "no user or role of one's own", rule: "security-opt", host: `{"SecurityOpt":["label=user:system_u"]}`},
	{standard: "baseline", name: "SELinux", demand: "and not switched off", rule: "security-opt", host: `{"SecurityOpt":["label=disable"]}`},
	{standard: "baseline", name: "/proc Mount Type", demand: "the default masks", rule: "masked-paths", host: `{"MaskedPaths":[],"ReadonlyPaths":[]}`},
	{standard: "baseline", name: "Seccomp", demand: "not switched off", rule: "security-opt", host: `{"SecurityOpt":["seccomp=unconfined"]}`},
	{standard: "baseline", name: "Sysctls", demand: "those of a safe list", rule: "sysctls", host: `{"Sysctls":{"kernel.msgmax":"1"}}`},

	{standard: "restricted", name: "Volume Types", demand: "volumes and scratch space", rule: "mount-options", host: `{"Mounts":[{"Type":"npipe","Source":"x","Target":"/x"}]}`},
	{standard: "restricted", name: "Volume Types", demand: "no paths of the host", reason: byBinds},
	{standard: "restricted", name: "Privilege Escalation", demand: "cannot be asked for", rule: "security-opt", host: `{"SecurityOpt":["no-new-privileges=false"]}`},
	{standard: "restricted", name: "Privilege Escalation", demand: "is off where nothing is asked", set: `"SecurityOpt":["no-new-privileges"]`},
	{standard: "restricted", name: "Running as Non-root", demand: "always", reason: "root of a container is nobody on the host without paths of the host; with them " + byBinds},
	{standard: "restricted", name: "Running as Non-root user", demand: "no uid 0", reason: "root of a container is nobody on the host without paths of the host; with them " + byBinds},
	{standard: "restricted", name: "Seccomp", demand: "the default profile or one of a list", rule: "security-opt", host: `{"SecurityOpt":["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]}`},
	{standard: "restricted", name: "Capabilities", demand: "all are dropped", set: `"CapDrop":["ALL"]`},
	{standard: "restricted", name: "Capabilities", demand: "only the lowest ports may come back", rule: "capabilities", host: `{"CapAdd":["CHOWN"]}`},

	{standard: "cis", name: "5.1", demand: "swarm mode is off where nobody needs it", reason: "the routes of a swarm are for admins"},
	{standard: "cis", name: "5.2", demand: "AppArmor confines containers", rule: "security-opt", host: `{"SecurityOpt":["apparmor:unconfined"]}`},
	{standard: "cis", name: "5.3", demand: "SELinux confines containers", rule: "security-opt", host: `{"SecurityOpt":["label:disable"]}`},
	{standard: "cis", name: "5.4", demand: "kernel capabilities are few", rule: "capabilities", host: `{"CapAdd":["NET_ADMIN"]}`},
	{standard: "cis", name: "5.5", demand: "no privileged containers", rule: "refuse-privileged", host: `{"Privileged":true}`},
	{standard: "cis", name: "5.6", demand: "no system directories of the host inside", reason: byBinds},
	{standard: "cis", name: "5.7", demand: "no sshd inside", reason: byUser},
	{standard: "cis", name: "5.8", demand: "no privileged ports of the host", rule: "published-ports", host: `{"PortBindings":{"8022/tcp":[{"HostIp":"127.0.0.1","HostPort":"1023"}]}}`},
	{standard: "cis", name: "5.9", demand: "only the ports that are needed", reason: byUser},
	{standard: "cis", name: "5.10", demand: "no network of the host", rule: "host-network", host: `{"NetworkMode":"host"}`},
	{standard: "cis", name: "5.11", demand: "memory has a limit", reason: byQuota},
	{standard: "cis", name: "5.12", demand: "shares of the processor are set", reason: byQuota},
	{standard: "cis", name: "5.13", demand: "the root file system is read-only", reason: byUser},
	{standard: "cis", name: "5.14", demand: "ports are published on one address", reason: "which addresses are inside is known to the admin, who names them in publish.addresses"},
	{standard: "cis", name: "5.15", demand: "five restarts at most", reason: "a container that restarts stays in its user's slice"},
	{standard: "cis", name: "5.16", demand: "no processes of the host", rule: "host-pid", host: `{"PidMode":"host"}`},
	{standard: "cis", name: "5.17", demand: "no shared memory of the host", rule: "host-ipc", host: `{"IpcMode":"host"}`},
	{standard: "cis", name: "5.18", demand: "no devices of the host", rule: "devices", host: `{"Devices":[{"PathOnHost":"/dev/sda","PathInContainer":"/dev/sda","CgroupPermissions":"rwm"}]}`},
	{standard: "cis", name: "5.18", demand: "nor the right to make them", rule: "device-cgroup-rules", host: `{"DeviceCgroupRules":["b 8:0 rwm"]}`},
	{standard: "cis", name: "5.19", demand: "limits of processes are changed with care", rule: "ulimits", host: `{"Ulimits":[{"Name":"rtprio","Soft":99,"Hard":99}]}`},
	{standard: "cis", name: "5.20", demand: "mounts do not propagate to the host", rule: "mount-options", host: `{"Binds":["v:/d:rshared"]}`},
	{standard: "cis", name: "5.21", demand: "no host name of the host", rule: "host-uts", host: `{"UTSMode":"host"}`},
	{standard: "cis", name: "5.22", demand: "the default seccomp profile stays", rule: "security-opt", host: `{"SecurityOpt":["seccomp:unconfined"]}`},
	{standard: "cis", name: "5.23", demand: "no privileged exec", rule: "refuse-privileged", exec: `{"Privileged":true,"Cmd":["sh"]}`},
	{standard: "cis", name: "5.24", demand: "no exec as root", reason: byUser},
	{standard: "cis", name: "5.25", demand: "the cgroup is the one that is meant", reason: "the user's slice takes the place of any cgroup parent"},
	{standard: "cis", name: "5.26", demand: "no way to more privileges", rule: "security-opt", host: `{"SecurityOpt":["no-new-privileges:false"]}`},
	{standard: "cis", name: "5.26", demand: "no way to more privileges", set: `"SecurityOpt":["no-new-privileges"]`},
	{standard: "cis", name: "5.27", demand: "health is checked", reason: byUser},
	{standard: "cis", name: "5.28", demand: "images are the newest", reason: byUser},
	{standard: "cis", name: "5.29", demand: "processes have a limit", reason: byQuota},
	{standard: "cis", name: "5.30", demand: "the default bridge is not used", reason: "docker run without words uses it; users have networks of their own where they want them"},
	{standard: "cis", name: "5.31", demand: "no user namespace of the host", rule: "host-userns", host: `{"UsernsMode":"host"}`},
	{standard: "cis", name: "5.32", demand: "no socket of the Engine inside", reason: byBinds},
}

// named are the names that the standards give to their controls.
func named() map[string][]string {
	all := map[string][]string{
		"baseline": {
			"HostProcess", "Host Namespaces", "Privileged Containers", "Capabilities", "HostPath Volumes", "Host Ports",
			"Host Probes / Lifecycle Hooks", "AppArmor", "SELinux", "/proc Mount Type", "Seccomp", "Sysctls",
		},
		"restricted": {"Volume Types", "Privilege Escalation", "Running as Non-root", "Running as Non-root user", "Seccomp", "Capabilities"},
	}
	for n := 1; n <= 32; n++ {
		all["cis"] = append(all["cis"], fmt.Sprintf("5.%d", n))
	}
	return all
}

// TestStandards wants every control of both standards to be met: baseline by the
// profile confined, restricted by strict, and the benchmark by strict as well.
func TestStandards(t *testing.T) {
	policies := parse(t, "").policies
	missing := named()
	for _, c := range controls {
		title := c.standard + " " + c.name + " (" + c.demand + ")"
		if !slices.Contains(named()[c.standard], c.name) {
			t.Errorf("%s is not a control", title)
		}
		missing[c.standard] = slices.DeleteFunc(missing[c.standard], func(name string) bool { return name == c.name })
		p := policies["strict"]
		if c.standard == "baseline" {
			p = policies["confined"]
		}
		if err := c.met(p); err != nil {
			t.Errorf("%s: %v", title, err)
		}
	}
	for standard, names := range missing {
		for _, name := range names {
			t.Errorf("nothing is said about %s %s", standard, name)
		}
	}
}

// met returns why a control is not met by a profile.
func (c *control) met(p *policy.Profile) error {
	var req container.CreateRequest
	var exec container.ExecOptions
	switch {
	case c.reason != "":
		if c.rule+c.host+c.exec+c.set != "" || len(strings.Fields(c.reason)) < 5 {
			return fmt.Errorf("there is a reason %q beside a rule, or it says nothing", c.reason)
		}
		return nil
	case c.set != "":
		req.HostConfig = &container.HostConfig{}
		policy.Harden(p, &req)
		text, err := json.Marshal(req.HostConfig)
		if err == nil && !strings.Contains(string(text), c.set) {
			err = fmt.Errorf("%s sets %s", p.Name, text)
		}
		return err
	case !slices.ContainsFunc(policy.HostRules, func(r policy.HostRule) bool { return r.Name == c.rule }):
		return fmt.Errorf("there is no rule %q", c.rule)
	case c.exec != "":
		if err := json.Unmarshal([]byte(c.exec), &exec); err != nil {
			return err
		}
		return refusedBy(c.rule, policy.ExecVerdict(p, &exec))
	}
	if err := json.Unmarshal([]byte(`{"Image":"x","HostConfig":`+c.host+`}`), &req); err != nil {
		return err
	}
	return refusedBy(c.rule, policy.HostVerdict(p, &req))
}

func refusedBy(rule string, v policy.Verdict) error {
	if v.Allowed() || v.Rule != rule {
		return fmt.Errorf("the verdict is %+v, not the rule %s", v, rule)
	}
	return nil
}

// TestProfilesAreNotStricterThanTheyShouldBe lets through, by each profile, what the
// standard that it stands for lets through.
func TestProfilesAreNotStricterThanTheyShouldBe(t *testing.T) {
	policies := parse(t, "").policies
	for _, c := range []struct{ profile, host string }{
		// MKNOD is in the baseline's list; a node in a container's root is a disk to who can
		// reach it from the host, which users of one machine can.
		{"confined", `{"CapAdd":["AUDIT_WRITE","CHOWN","DAC_OVERRIDE","FOWNER","FSETID","KILL","NET_BIND_SERVICE","SETFCAP","SETGID","SETPCAP","SETUID","SYS_CHROOT"]}`},
		{"confined", `{"Sysctls":{"kernel.shm_rmid_forced":"1","net.ipv4.ip_local_port_range":"1024 65535","net.ipv4.ip_unprivileged_port_start":"0","net.ipv4.tcp_syncookies":"1","net.ipv4.ping_group_range":"0 0",
			"net.ipv4.ip_local_reserved_ports":"1","net.ipv4.tcp_keepalive_time":"1","net.ipv4.tcp_fin_timeout":"1","net.ipv4.tcp_keepalive_intvl":"1","net.ipv4.tcp_keepalive_probes":"1"}}`},
		{"confined", `{"SecurityOpt":["apparmor=docker-default","seccomp=builtin","no-new-privileges"]}`},
		{"strict", `{"CapAdd":["NET_BIND_SERVICE"],"CapDrop":["ALL"],"SecurityOpt":["no-new-privileges:true"]}`},
		{"strict", `{"RestartPolicy":{"Name":"always"},"PortBindings":{"80/tcp":[{"HostPort":"8080"}]},"Memory":1,"Tmpfs":{"/t":""},"ReadonlyRootfs":true}`},
		{"ml-lab", `{"CapAdd":["SYS_PTRACE"],"ShmSize":8589934592,"Ulimits":[{"Name":"memlock","Soft":-1,"Hard":-1},{"Name":"stack","Soft":67108864,"Hard":67108864}],
			"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}],"Devices":[{"PathOnHost":"/dev/fuse"},{"PathOnHost":"/dev/infiniband/uverbs0"}]}`},
		{"open", `{"Privileged":true,"PidMode":"host","NetworkMode":"host","CapAdd":["ALL"]}`},
	} {
		var req container.CreateRequest
		if err := json.Unmarshal([]byte(`{"Image":"x","HostConfig":`+c.host+`}`), &req); err != nil {
			t.Fatalf("%s: %v", c.host, err)
		}
		if v := policy.HostVerdict(policies[c.profile], &req); !v.Allowed() {
			t.Errorf("%s: %s: %+v", c.profile, c.host, v)
		}
	}
}
