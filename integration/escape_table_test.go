package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
	"github.com/ds01/ds01-proxy/policy"
)

// holes is the table.
func holes() []hole {
	var all []hole
	for _, family := range [][]hole{privilegeHoles(), capabilityHoles(), confinementHoles(), namespaceHoles(), deviceHoles(), settingHoles(), logHoles(), spellingHoles(), otherHoles()} {
		all = append(all, family...)
	}
	return all
}

func privilegeHoles() []hole {
	return []hole{
		{rule: "refuse-privileged", name: "reads the host's disk", host: `"Privileged":true`, script: "head -c 24 _DISK_", open: has(`"Privileged":true`)},
		{rule: "refuse-privileged", name: "with everything else denied", host: `"Privileged":true,"CapDrop":["ALL"],"SecurityOpt":["no-new-privileges"],"ReadonlyRootfs":true`, open: has(`"Privileged":true`)},
		{rule: "refuse-privileged", name: "exec", target: "/containers/_OWN_/exec", body: `{"Privileged":true,"Cmd":["true"]}`, prepare: ownContainer, open: privilegedExec},
		{rule: "refuse-privileged", name: "exec in another case", target: "/containers/_OWN_/exec", body: `{"Privileged":false,"privileged":true,"Cmd":["true"]}`, prepare: ownContainer, open: privilegedExec},
		{rule: "refuse-privileged", name: "exec as a user", target: "/containers/_OWN_/exec", body: `{"PRIVILEGED":true,"User":"1000","Cmd":["true"]}`, prepare: ownContainer, open: privilegedExec},
	}
}

// capabilityHoles asks for capabilities that no container has by itself.
func capabilityHoles() []hole {
	return []hole{
		{rule: "capabilities", name: "SYS_ADMIN mounts", host: `"CapAdd":["SYS_ADMIN"]`, script: "mount -t tmpfs none /tmp && echo mounted", open: prints("mounted")},
		{rule: "capabilities", name: "NET_ADMIN changes interfaces", host: `"CapAdd":["NET_ADMIN"]`, script: "ip link set lo down && echo changed", open: prints("changed")},
		{rule: "capabilities", name: "DAC_READ_SEARCH opens by handle", host: `"CapAdd":["DAC_READ_SEARCH"]`, script: "grep CapEff /proc/self/status", open: holds(2)},
		{rule: "capabilities", name: "SYS_PTRACE follows others", host: `"CapAdd":["SYS_PTRACE"]`, script: "grep CapEff /proc/self/status", open: holds(19)},
		{rule: "capabilities", name: "SYS_MODULE loads into the kernel", host: `"CapAdd":["CAP_SYS_MODULE"]`, script: "grep CapEff /proc/self/status", open: holds(16)},
		{rule: "capabilities", name: "SYS_RAWIO reaches ports", host: `"CapAdd":["sys_rawio"]`, script: "grep CapEff /proc/self/status", open: holds(17)},
		{rule: "capabilities", name: "all", host: `"CapAdd":["ALL"]`, open: has(`"CapAdd":["ALL"]`)},
		{rule: "capabilities", name: "all, after harmless ones", host: `"CapAdd":["CHOWN","all"]`, open: has(`"all"`)},
		{rule: "capabilities", name: "all, with all dropped", host: `"CapAdd":["SYS_ADMIN"],"CapDrop":["ALL"]`, script: "grep CapEff /proc/self/status", open: holds(21)},
		{rule: "capabilities", name: "with a long s", host: `"CapAdd":["ſys_time"]`, open: has("ſys_time")},
		{rule: "capabilities", name: "null", host: `"CapAdd":[null]`, open: taken, shut: "an empty name is none"},
	}
}

// otherCapabilities are those that no container has by itself, beside the ones that
// holes are shown for, and that this Engine knows.
var otherCapabilities = []string{
	"AUDIT_CONTROL", "AUDIT_READ", "BLOCK_SUSPEND", "IPC_LOCK", "IPC_OWNER", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE",
	"NET_BROADCAST", "SYSLOG", "SYS_BOOT", "SYS_NICE", "SYS_PACCT", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
}

// TestNoOtherCapability asks for each of the others, and of those that newer Engines
// know.
func TestNoOtherCapability(t *testing.T) {
	for _, c := range append([]string{"BPF", "PERFMON", "CHECKPOINT_RESTORE"}, otherCapabilities...) {
		body := `{"Image":"busybox:local","HostConfig":{"CapAdd":["` + c + `"]}}`
		if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/containers/create", body); got.status != http.StatusForbidden || !strings.Contains(got.body, "(rule capabilities,") {
			t.Errorf("%s: %d %s", c, got.status, got.body)
		}
	}
	id := admin(t, append(capAdds(otherCapabilities), lab.Image)...)
	tidy(t, id)
	if got := admin(t, "inspect", id, "--format", "{{len .HostConfig.CapAdd}}"); got != fmt.Sprint(len(otherCapabilities)) {
		t.Errorf("the Engine itself gives %s of them", got)
	}
}

func capAdds(names []string) []string {
	args := []string{"create"}
	for _, c := range names {
		args = append(args, "--cap-add", c)
	}
	return args
}

func confinementHoles() []hole {
	status := "grep Seccomp: /proc/self/status"
	anything := `"SecurityOpt":["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]`
	return []hole{
		{rule: "security-opt", name: "no seccomp", host: `"SecurityOpt":["seccomp=unconfined"]`, script: status, open: prints("Seccomp:\t0")},
		{rule: "security-opt", name: "no seccomp, as it was written once", host: `"SecurityOpt":["seccomp:unconfined"]`, script: status, open: prints("Seccomp:\t0")},
		{rule: "security-opt", name: "no seccomp, after harmless words", host: `"SecurityOpt":["no-new-privileges","seccomp=unconfined"]`, script: status, open: prints("Seccomp:\t0")},
		{rule: "security-opt", name: "a seccomp profile of one's own", host: anything, script: "unshare -U true && echo unshared", open: prints("unshared")},
		{rule: "security-opt", name: "no AppArmor", host: `"SecurityOpt":["apparmor=unconfined"]`, open: has(`apparmor=unconfined`)},
		{rule: "security-opt", name: "another AppArmor profile", host: `"SecurityOpt":["apparmor:other"]`, open: has(`apparmor:other`)},
		{rule: "security-opt", name: "no SELinux", host: `"SecurityOpt":["label=disable"]`, open: has(`label=disable`)},
		{rule: "security-opt", name: "no SELinux, as it was written once", host: `"SecurityOpt":["disable"]`, open: has(`"disable"`)},
		{rule: "security-opt", name: "another SELinux type", host: `"SecurityOpt":["label:type:spc_t"]`, open: has("spc_t")},
		{rule: "security-opt", name: "cgroups to write to", host: `"SecurityOpt":["writable-cgroups=true"]`, open: taken, shut: "this Engine does not know it"},
		{rule: "security-opt", name: "system paths", host: `"SecurityOpt":["systempaths=unconfined"]`, open: taken, shut: "clients make lists of it"},
		{rule: "masked-paths", name: "kernel settings to write to", host: `"ReadonlyPaths":[]`, script: "[ -w /proc/sys/kernel/core_pattern ] && echo writable", open: prints("writable")},
		{rule: "masked-paths", name: "what the kernel shows of the machine", host: `"MaskedPaths":[]`, script: "grep -c /proc/kcore /proc/mounts", open: prints("0")},
		{rule: "masked-paths", name: "as the CLI writes system paths", host: `"MaskedPaths":[],"ReadonlyPaths":[]`, script: "[ -w /proc/sys/kernel/core_pattern ] && grep -c /proc/kcore /proc/mounts", open: prints("0")},
		{rule: "masked-paths", name: "all but one", host: `"ReadonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sysrq-trigger"]`, script: "[ -w /proc/sys/kernel/core_pattern ] && echo writable", open: prints("writable")},
		{rule: "masked-paths", name: "the right ones, wrongly spelt", host: `"ReadonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sys/","/proc/sysrq-trigger"]`, open: has("/proc/sys/")},
		{rule: "masked-paths", name: "with a sign of the kelvin", host: `"Mas` + "\u212a" + `edPaths":[]`, script: "grep -c /proc/kcore /proc/mounts", open: prints("0")},
		{rule: "masked-paths", name: "nothing in the list", host: `"MaskedPaths":[null]`, open: has(`"MaskedPaths":[""]`)},
	}
}

func namespaceHoles() []hole {
	link := func(namespace string) string { return "readlink /proc/self/ns/" + namespace }
	return []hole{
		{rule: "host-network", name: "", host: `"NetworkMode":"host"`, script: link("net"), open: shares("net")},
		{rule: "host-network", name: "with a sign of the kelvin", host: `"Networ` + "\u212a" + `Mode":"host"`, script: link("net"), open: shares("net")},
		{rule: "host-network", name: "after another", host: `"NetworkMode":"none","networkmode":"host"`, script: link("net"), open: shares("net")},
		{rule: "host-network", name: "by its ID", host: `"NetworkMode":"_HOSTNET_"`, prepare: hostNetwork, script: link("net"), open: shares("net"), shut: "the namespace stays its own"},
		{rule: "host-network", name: "by its short ID", host: `"NetworkMode":"_HOSTNET12_"`, prepare: hostNetwork, script: link("net"), open: shares("net"), shut: "the namespace stays its own"},
		{rule: "host-network", name: "as an endpoint", body: `{"Image":"busybox:local","Tty":true,"Cmd":["readlink","/proc/self/ns/net"],"NetworkingConfig":{"EndpointsConfig":{"host":{}}}}`, open: shares("net"), shut: "the namespace stays its own"},
		{rule: "host-network", name: "as an endpoint beside none", body: `{"Image":"busybox:local","Tty":true,"Cmd":["readlink","/proc/self/ns/net"],"HostConfig":{"NetworkMode":"none"},"NetworkingConfig":{"EndpointsConfig":{"host":{}}}}`, open: shares("net"), shut: "the namespace stays its own"},
		{rule: "host-pid", name: "sees the host's processes", host: `"PidMode":"host"`, script: "tr '\\0' ' ' </proc/_PID_/cmdline", open: prints("integration.test")},
		{rule: "capabilities", name: "SYS_PTRACE and the host's processes read its files", host: `"PidMode":"host","CapAdd":["SYS_PTRACE"]`, script: "head -c 24 /proc/_PID_/root_MARKER_", open: prints(secret)},
		{rule: "host-ipc", name: "", host: `"IpcMode":"host"`, script: link("ipc"), open: shares("ipc")},
		{rule: "host-uts", name: "", host: `"UTSMode":"host"`, script: link("uts"), open: shares("uts")},
		{rule: "host-userns", name: "", host: `"UsernsMode":"host"`, script: link("user"), open: shares("user")},
		{rule: "host-cgroupns", name: "", host: `"CgroupnsMode":"host"`, script: link("cgroup"), open: shares("cgroup")},
		{rule: "host-pid", name: "a mode that is none", host: `"PidMode":"Host"`, script: link("pid"), open: shares("pid"), shut: "there is no such mode"},
	}
}

func deviceHoles() []hole {
	give := func(rest string) string { return `"Devices":[{"PathOnHost":"_DISK_",` + rest + `}]` }
	return []hole{
		{rule: "devices", name: "a disk", host: give(`"PathInContainer":"/dev/x","CgroupPermissions":"r"`), script: "head -c 24 /dev/x", open: prints(secret)},
		{rule: "devices", name: "a disk by another case", host: `"deviceſ":[{"pathonhost":"_DISK_","PathInContainer":"/dev/x","CgroupPermissions":"r"}]`, script: "head -c 24 /dev/x", open: prints(secret)},
		{rule: "devices", name: "the memory", host: `"Devices":[{"PathOnHost":"/dev/mem","PathInContainer":"/dev/null2","CgroupPermissions":"r"}]`, open: has("/dev/mem")},
		{rule: "devices", name: "all of /dev", host: `"Devices":[{"PathOnHost":"/dev","PathInContainer":"/dev","CgroupPermissions":"r"}]`, open: has(`"PathOnHost":"/dev"`)},
		{rule: "devices", name: "FUSE, which another profile allows", host: `"Devices":[{"PathOnHost":"/dev/fuse","PathInContainer":"/dev/fuse","CgroupPermissions":"rwm"}]`, open: has("/dev/fuse")},
		{rule: "devices", name: "null", host: `"Devices":[null]`, open: has(`"PathOnHost":""`)},
		{rule: "device-cgroup-rules", name: "a disk that one makes", host: `"DeviceCgroupRules":["b _MAJOR_:_MINOR_ rm"]`, script: "mknod /tmp/x b _MAJOR_ _MINOR_ && head -c 24 /tmp/x", open: prints(secret)},
		{rule: "device-cgroup-rules", name: "everything", host: `"DeviceCgroupRules":["a *:* rwm"]`, open: has("a *:* rwm")},
		{rule: "gpus", name: "a driver's options", host: `"DeviceRequests":[{"Driver":"nvidia","Count":-1,"Capabilities":[["gpu"]],"Options":{"a":"b"}}]`, open: has(`"Options":{"a":"b"}`)},
		{rule: "gpus", name: "any device by its name", host: `"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["vendor.com/disk=all"]}]`, open: has("vendor.com/disk=all")},
	}
}

// ownContainer gives alice a container that runs.
func ownContainer(y *yard) {
	y.id["own"] = y.must(lab.Alice, "POST", "/containers/create", `{"Image":"busybox:local","Cmd":["sleep","100000"],"HostConfig":{"Init":true}}`)
	y.must(lab.Alice, "POST", "/containers/"+y.id["own"]+"/start", "")
}

// hostNetwork finds the ID of the host's network.
func hostNetwork(y *yard) {
	var n struct{ ID string }
	if err := json.Unmarshal([]byte(y.raw("GET", "/networks/host", "").body), &n); err != nil {
		y.t.Fatal(err)
	}
	y.id["host net"] = n.ID
}

// privilegedExec wants an exec that is privileged.
func privilegedExec(y *yard, a answer) bool {
	shown := y.raw("GET", "/exec/"+idIn(a)+"/json", "")
	return a.status == http.StatusCreated && strings.Contains(shown.body, `"privileged":true`)
}

// rules are the rules that a hole must be shown for.
func rules() []string {
	var names []string
	for _, r := range policy.HostRules {
		names = append(names, r.Name)
	}
	return names
}

// inode is a namespace of the test's own process.
func inode(namespace string) string {
	link, err := os.Readlink("/proc/self/ns/" + namespace)
	if err != nil {
		return fmt.Sprint(err)
	}
	return link
}
