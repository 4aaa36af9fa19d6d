package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// A HostRule is one rule about what a container may ask of the host.
type HostRule struct {
	// Name is how messages and audit records call it.
	Name string
	// Check returns what is refused and what to do instead, or nothing.
	Check func(p *Profile, req *container.CreateRequest) string
}

// HostRules are all rules about a container's creation, in the order in which they
// are asked. HostConfig is never nil there.
var HostRules = []HostRule{
	{"refuse-privileged", refusePrivileged},
	{"capabilities", checkCapabilities},
	{"security-opt", checkSecurityOpt},
	{"masked-paths", checkMaskedPaths},
	{"host-network", func(p *Profile, req *container.CreateRequest) string {
		if nc := req.NetworkingConfig; nc != nil {
			if _, ok := nc.EndpointsConfig["host"]; ok {
				return hostNamespace("--network", "host", p.Network)
			}
		}
		return hostNamespace("--network", string(req.HostConfig.NetworkMode), p.Network)
	}},
	{"host-pid", func(p *Profile, req *container.CreateRequest) string {
		return namespace("--pid", string(req.HostConfig.PidMode), p.PID)
	}},
	{"host-ipc", func(p *Profile, req *container.CreateRequest) string {
		return namespace("--ipc", string(req.HostConfig.IpcMode), p.IPC, "none", "private", "shareable")
	}},
	{"host-uts", func(p *Profile, req *container.CreateRequest) string {
		return namespace("--uts", string(req.HostConfig.UTSMode), p.UTS)
	}},
	{"host-userns", func(p *Profile, req *container.CreateRequest) string {
		return namespace("--userns", string(req.HostConfig.UsernsMode), p.Userns)
	}},
	{"host-cgroupns", func(p *Profile, req *container.CreateRequest) string {
		return namespace("--cgroupns", string(req.HostConfig.CgroupnsMode), p.Cgroupns, "private")
	}},
	{"devices", checkDevices},
	{"device-cgroup-rules", checkDeviceRules},
	{"gpus", checkDeviceRequests},
	{"runtime", checkRuntime},
	{"sysctls", checkSysctls},
	{"annotations", checkAnnotations},
	{"oom", checkOOM},
	{"real-time", checkRealTime},
	{"ulimits", checkUlimits},
	{"block-io", checkBlockIO},
	{"log-driver", checkLogging},
	{"storage-opt", checkStorage},
	{"published-ports", checkPorts},
	{"restart-policy", checkRestart},
	{"group-add", checkGroups},
	{"mount-options", checkMounts},
	{"endpoint-options", checkEndpoints},
}

// HostVerdict asks every rule about a container's creation, and returns the first
// refusal.
func HostVerdict(p *Profile, req *container.CreateRequest) Verdict {
	if p.OwnershipOnly {
		return allow("open-profile")
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	for _, rule := range HostRules {
		if why := rule.Check(p, req); why != "" {
			return refuseByRule(p, rule.Name, why)
		}
	}
	return allow("host-rules")
}

func refuseByRule(p *Profile, rule, why string) Verdict {
	what, instead, _ := strings.Cut(why, "; ")
	text := fmt.Sprintf("Permission denied: %s is not allowed here (rule %s, profile %s).", what, rule, p.Name)
	if instead != "" {
		text += " " + instead
	}
	return refuse(rule, text)
}

func refusePrivileged(p *Profile, req *container.CreateRequest) string {
	if req.HostConfig.Privileged && !p.Privileged {
		return "--privileged; GPUs need --gpus only; leave it out, and ask for single capabilities with --cap-add where a program needs them."
	}
	return ""
}

func checkCapabilities(p *Profile, req *container.CreateRequest) string {
	for _, name := range req.HostConfig.CapAdd {
		c := capability(name)
		if allows(p.CapAdd, c) || allows(p.CapAdd, "ALL") {
			continue
		}
		if allows(defaultCapabilities, c) && !allows(p.CapDrop, c) && !allows(p.CapDrop, "ALL") {
			continue
		}
		return "--cap-add " + name + "; " + allowed("Allowed", p.CapAdd)
	}
	return ""
}

// allowed says what a list allows.
func allowed(word string, list []string) string {
	if len(list) == 0 {
		return "Leave it out."
	}
	return word + ": " + strings.Join(list, ", ") + "."
}

// checkSecurityOpt knows the forms of the Engine: key=value, and key:value of old.
func checkSecurityOpt(p *Profile, req *container.CreateRequest) string {
	for _, opt := range req.HostConfig.SecurityOpt {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			key, value, _ = strings.Cut(opt, ":")
		}
		plain := key + "=" + value
		switch {
		case key == "no-new-privileges" && (value == "" || value == "true" || value == "false" && !p.NoNewPrivileges):
		case key == "seccomp" && value == "builtin":
		case key == "apparmor" && (value == "docker-default" || value == ""):
		case allows(p.SecurityOpt, plain) || allows(p.SecurityOpt, key+"=*"):
		default:
			if len(value) > 40 {
				plain = key + "=…"
			}
			return "--security-opt " + plain + "; " + allowed("Allowed", append([]string{"no-new-privileges"}, p.SecurityOpt...))
		}
	}
	return ""
}

// The Engine's defaults (oci/defaults.go), as all of its versions have them; newer
// ones mask more.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// checkMaskedPaths refuses lists that leave out what the Engine hides by itself. An
// empty list hides nothing; null leaves the Engine's.
func checkMaskedPaths(p *Profile, req *container.CreateRequest) string {
	if allows(p.SecurityOpt, "systempaths=unconfined") {
		return ""
	}
	for _, one := range []struct {
		list, needed []string
	}{{req.HostConfig.MaskedPaths, maskedPaths}, {req.HostConfig.ReadonlyPaths, readonlyPaths}} {
		if one.list == nil {
			continue
		}
		// An empty list would come to be null when it is written out.
		for _, path := range one.needed {
			if !slices.Contains(one.list, path) {
				return "--security-opt systempaths=unconfined (a list of masked or read-only paths without " + path + "); Leave it out."
			}
		}
	}
	return ""
}

// namespace refuses a host's namespace and whatever is not known; another
// container's is checked for its owner elsewhere.
func namespace(flag, mode string, host []string, harmless ...string) string {
	if mode == "" || strings.HasPrefix(mode, "container:") || slices.Contains(harmless, mode) || allows(host, mode) {
		return ""
	}
	return flag + " " + mode + "; Leave it out: the container then has one of its own."
}

// hostNamespace is namespace where a name may stand that is checked elsewhere.
func hostNamespace(flag, mode string, host []string) string {
	if mode != "host" {
		return ""
	}
	return namespace(flag, mode, host)
}

func checkDevices(p *Profile, req *container.CreateRequest) string {
	for _, d := range req.HostConfig.Devices {
		if !allowsPath(p.Devices, d.PathOnHost) {
			return "--device " + d.PathOnHost + "; " + allowed("Allowed", p.Devices) + " GPUs are asked for with --gpus."
		}
	}
	return ""
}

func checkDeviceRules(p *Profile, req *container.CreateRequest) string {
	for _, rule := range req.HostConfig.DeviceCgroupRules {
		if !allows(p.DeviceCgroupRules, rule) {
			return "--device-cgroup-rule " + strconv.Quote(rule) + "; " + allowed("Allowed", p.DeviceCgroupRules)
		}
	}
	return ""
}

// checkDeviceRequests lets GPUs through where the profile has them, by nvidia's
// driver or by its names of the Container Device Interface.
func checkDeviceRequests(p *Profile, req *container.CreateRequest) string {
	for _, d := range req.HostConfig.DeviceRequests {
		gpu := d.Driver == "" || d.Driver == "nvidia"
		if d.Driver == "cdi" {
			gpu = !slices.ContainsFunc(d.DeviceIDs, func(id string) bool { return !strings.HasPrefix(id, "nvidia.com/gpu=") })
		}
		if !gpu || !p.GPUs || len(d.Options) > 0 {
			return fmt.Sprintf("--gpus (device request %q %q); Ask your admin for a profile with GPUs.", d.Driver, d.DeviceIDs)
		}
	}
	return ""
}

func checkRuntime(p *Profile, req *container.CreateRequest) string {
	switch name := req.HostConfig.Runtime; {
	case name == "", name == "runc", name == "io.containerd.runc.v2", allows(p.Runtime, name):
		return ""
	default:
		return "--runtime " + name + "; " + allowed("Allowed", append([]string{"runc"}, p.Runtime...))
	}
}

func checkSysctls(p *Profile, req *container.CreateRequest) string {
	for _, key := range sortedKeys(req.HostConfig.Sysctls) {
		if !allows(p.Sysctl, key) {
			return "--sysctl " + key + "; " + allowed("Allowed", p.Sysctl)
		}
	}
	return ""
}

func checkAnnotations(p *Profile, req *container.CreateRequest) string {
	for _, key := range sortedKeys(req.HostConfig.Annotations) {
		if !allows(p.Annotation, key) {
			return "--annotation " + key + "; " + allowed("Allowed", p.Annotation) + " Labels (--label) are free."
		}
	}
	return ""
}
