package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/blkiodev"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
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

func checkOOM(_ *Profile, req *container.CreateRequest) string {
	hc := req.HostConfig
	if hc.OomKillDisable != nil && *hc.OomKillDisable {
		return "--oom-kill-disable; Leave it out: a container that cannot be killed can stop the machine."
	}
	if hc.OomScoreAdj < 0 {
		return fmt.Sprintf("--oom-score-adj %d; Use 0 or more: below that, others are killed in its stead.", hc.OomScoreAdj)
	}
	return ""
}

func checkRealTime(_ *Profile, req *container.CreateRequest) string {
	if req.HostConfig.CPURealtimePeriod != 0 || req.HostConfig.CPURealtimeRuntime != 0 {
		return "--cpu-rt-runtime or --cpu-rt-period; Leave it out."
	}
	return ""
}

// maxOpenFiles is how many files a process may have open, by --ulimit nofile: the
// kernel's own bound (fs.nr_open) where nobody changed it.
const maxOpenFiles = 1 << 20

func checkUlimits(p *Profile, req *container.CreateRequest) string {
	return ulimits(p, req.HostConfig.Ulimits)
}

func ulimits(p *Profile, list []*container.Ulimit) string {
	for _, u := range list {
		if u == nil {
			// Engines fail on it when the container starts, and leave it locked.
			return "--ulimit null; Leave it out."
		}
		if !allows(p.Ulimit, u.Name) {
			return "--ulimit " + u.Name + "; " + allowed("Allowed", p.Ulimit)
		}
		if u.Name == "nofile" && (u.Hard > maxOpenFiles || u.Soft > maxOpenFiles || u.Hard < 0 || u.Soft < 0) {
			return fmt.Sprintf("--ulimit nofile=%d:%d; The most is %d.", u.Soft, u.Hard, maxOpenFiles)
		}
	}
	return ""
}

// checkBlockIO holds the devices of limits to /dev: the Engine looks for the path as
// root, and says whether it is there. It fails on null.
func checkBlockIO(_ *Profile, req *container.CreateRequest) string {
	hc := req.HostConfig
	for _, d := range hc.BlkioWeightDevice {
		if d == nil || !inDev(d.Path) {
			return "--blkio-weight-device; Name a device below /dev."
		}
	}
	for _, of := range []struct {
		flag string
		list []*blkiodev.ThrottleDevice
	}{
		{"--device-read-bps", hc.BlkioDeviceReadBps}, {"--device-write-bps", hc.BlkioDeviceWriteBps},
		{"--device-read-iops", hc.BlkioDeviceReadIOps}, {"--device-write-iops", hc.BlkioDeviceWriteIOps},
	} {
		for _, d := range of.list {
			if d == nil || !inDev(d.Path) {
				return of.flag + "; Name a device below /dev."
			}
		}
	}
	return ""
}

func inDev(path string) bool { return allowsPath([]string{"/dev/*", "/dev/*/*"}, path) }

// logOptions are what the Engine's own drivers are told about files and lines.
var logOptions = []string{
	"max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size",
	"cache-disabled", "cache-max-file", "cache-max-size", "cache-compress",
}

func checkLogging(p *Profile, req *container.CreateRequest) string {
	log := req.HostConfig.LogConfig
	if log.Type != "" && !allows(p.LogDriver, log.Type) {
		return "--log-driver " + log.Type + "; " + allowed("Allowed", p.LogDriver)
	}
	for _, key := range sortedKeys(log.Config) {
		if !slices.Contains(logOptions, key) {
			return "--log-opt " + key + "; " + allowed("Allowed", logOptions)
		}
	}
	return ""
}

func checkStorage(p *Profile, req *container.CreateRequest) string {
	for _, key := range sortedKeys(req.HostConfig.StorageOpt) {
		if !allows(p.StorageOpt, strings.ToLower(key)) {
			return "--storage-opt " + key + "; " + allowed("Allowed", p.StorageOpt)
		}
	}
	return ""
}

// checkPorts knows the Engine's form of a port: a number, a range, or none for one
// that the Engine chooses.
func checkPorts(p *Profile, req *container.CreateRequest) string {
	for _, bindings := range req.HostConfig.PortBindings {
		for _, b := range bindings {
			first, last, isRange := strings.Cut(b.HostPort, "-")
			if !isRange {
				last = first
			}
			for _, text := range []string{first, last} {
				port, err := strconv.ParseUint(text, 10, 16)
				switch {
				case text == "" && !isRange, err == nil && port == 0 && !isRange:
					// The Engine chooses one of the kernel's ephemeral ports.
				case err != nil:
					return fmt.Sprintf("-p %q; Use a port from %d to 65535.", b.HostPort, p.minPort())
				case int(port) < p.minPort():
					return fmt.Sprintf("-p %s; Use a port of the host from %d on.", b.HostPort, p.minPort())
				}
			}
			if len(p.PublishIP) > 0 && !allows(p.PublishIP, b.HostIP) {
				return "-p on the address " + strconv.Quote(b.HostIP) + "; " + allowed("Allowed", p.PublishIP)
			}
		}
	}
	if req.HostConfig.PublishAllPorts && len(p.PublishIP) > 0 {
		return "-P; Publish single ports, with their address."
	}
	return ""
}

func checkRestart(p *Profile, req *container.CreateRequest) string {
	return restart(p, req.HostConfig.RestartPolicy)
}

func restart(p *Profile, r container.RestartPolicy) string {
	if name := string(r.Name); name != "" && !allows(p.Restart, name) {
		return "--restart " + name + "; " + allowed("Allowed", p.Restart)
	}
	return ""
}

func checkGroups(p *Profile, req *container.CreateRequest) string {
	for _, g := range req.HostConfig.GroupAdd {
		if !allows(p.GroupAdd, g) && !allows(p.GroupAdd, "any") {
			return "--group-add " + g + "; " + allowed("Allowed", p.GroupAdd)
		}
	}
	return ""
}

// bindOptions are what may stand behind a bind's target: read-only or not, what
// Docker Desktop tunes, and a volume's copy. Propagation reaches the host's own
// mounts, and z and Z relabel its files.
var bindOptions = []string{"", "ro", "rw", "nocopy", "cached", "delegated", "consistent", "default", "rprivate", "private", "bind", "rbind"}

func checkMounts(_ *Profile, req *container.CreateRequest) string {
	for _, bind := range req.HostConfig.Binds {
		if parts := strings.Split(bind, ":"); len(parts) > 2 {
			for option := range strings.SplitSeq(parts[len(parts)-1], ",") {
				if !slices.Contains(bindOptions, option) {
					return "-v " + bind + " (" + option + "); Leave the option out."
				}
			}
		}
	}
	for _, from := range req.HostConfig.VolumesFrom {
		// The mode holds for the other container's binds too.
		if _, mode, _ := strings.Cut(from, ":"); mode != "" && mode != "ro" && mode != "rw" {
			return "--volumes-from " + from + " (" + mode + "); Leave the option out."
		}
	}
	for _, m := range req.HostConfig.Mounts {
		switch m.Type {
		case mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeImage:
		default:
			return "--mount type=" + string(m.Type) + "; Allowed: bind, volume, tmpfs, image."
		}
		if m.BindOptions == nil {
			continue
		}
		switch m.BindOptions.Propagation {
		case "", mount.PropagationPrivate, mount.PropagationRPrivate:
		default:
			return "--mount bind-propagation=" + string(m.BindOptions.Propagation) + "; Leave it out: mounts of the container stay the container's."
		}
	}
	return ""
}

// endpointOptions are those of an endpoint that touch nothing but it.
var endpointOptions = []string{"com.docker.network.endpoint.ifname"}

func checkEndpoints(_ *Profile, req *container.CreateRequest) string {
	if req.NetworkingConfig == nil {
		return ""
	}
	for _, name := range sortedKeys(req.NetworkingConfig.EndpointsConfig) {
		if why := endpoint(req.NetworkingConfig.EndpointsConfig[name]); why != "" {
			return why
		}
	}
	return ""
}

func endpoint(ep *network.EndpointSettings) string {
	if ep == nil {
		return ""
	}
	for _, key := range sortedKeys(ep.DriverOpts) {
		if !slices.Contains(endpointOptions, key) {
			return "--network driver-opt=" + key + "; Leave it out."
		}
	}
	return ""
}

// ConnectVerdict decides about the settings by which a container joins a network.
func ConnectVerdict(p *Profile, ep *network.EndpointSettings) Verdict {
	if p.OwnershipOnly {
		return allow("open-profile")
	}
	if why := endpoint(ep); why != "" {
		return refuseByRule(p, "endpoint-options", why)
	}
	return allow("host-rules")
}
