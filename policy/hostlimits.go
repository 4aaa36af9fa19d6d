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

// maxPorts is how many ports of the host one container may publish: the Engine runs two
// processes as root for each, outside of every limit of the user's.
const maxPorts = 128

func portCount(n int) string {
	if n <= maxPorts {
		return ""
	}
	return fmt.Sprintf("publishing %d ports; Publish %d or fewer, and let containers reach each other by a network of theirs.", n, maxPorts)
}

// ExposedPorts decides about the ports that -P publishes of an image's.
func ExposedPorts(p *Profile, req *container.CreateRequest, image int) Verdict {
	if why := portCount(image + len(req.ExposedPorts)); why != "" && req.HostConfig.PublishAllPorts && !p.OwnershipOnly {
		return refuseByRule(p, "published-ports", "-P "+why)
	}
	return allow("published-ports")
}

// checkPorts knows the Engine's form of a port: a number, a range, or none for one
// that the Engine chooses.
func checkPorts(p *Profile, req *container.CreateRequest) string {
	count := 0
	for _, bindings := range req.HostConfig.PortBindings {
		count += max(1, len(bindings))
	}
	if req.HostConfig.PublishAllPorts && req.Config != nil {
		count += len(req.ExposedPorts)
	}
	if why := portCount(count); why != "" {
		return why
	}
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
	targets := mountTargets(req)
	if req.Config != nil {
		targets = append(targets, sortedKeys(req.Volumes)...)
	}
	for _, target := range targets {
		if kernelPath(cleanTarget(target)) {
			return "a mount at " + target + "; Mount it elsewhere: these paths are the kernel's, and the container has its own there."
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

// kernelPath reports whether a path of a container is where the runtime puts devices,
// and what it hides: a mount there would hide it elsewhere. Shared memory and message
// queues are files like any.
func kernelPath(target string) bool {
	for _, free := range []string{"/dev/shm", "/dev/mqueue", "/dev/hugepages"} {
		if target == free || strings.HasPrefix(target, free+"/") {
			return false
		}
	}
	return slices.ContainsFunc([]string{"/dev", "/proc", "/sys"}, func(dir string) bool {
		return target == dir || strings.HasPrefix(target, dir+"/")
	})
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
