package proxy

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/integration/lab/bodies"
	"github.com/ds01/ds01-proxy/policy"
)

// wishes are host settings: what the profile confined refuses, and what it does not.
var wishes = map[bool][]string{
	true: {
		`"Privileged":true`, `"privileged":true`, `"Privileged":false,"PRIVILEGED":true`, `"CapAdd":["SYS_ADMIN"]`, `"CapAdd":["CHOWN","cap_all"]`, `"CapAdd":["ſys_admin"]`,
		`"SecurityOpt":["seccomp=unconfined"]`, `"SecurityOpt":["apparmor:unconfined"]`, `"SecurityOpt":["label=disable"]`, `"SecurityOpt":["seccomp={}"]`, `"ſecurityopt":["systempaths=unconfined"]`,
		`"MaskedPaths":[]`, `"ReadonlyPaths":[]`, `"Mas` + "\u212a" + `edPaths":["/proc/kcore"]`, `"NetworkMode":"host"`, `"PidMode":"host"`, `"IpcMode":"host"`, `"UTSMode":"host"`, `"UsernsMode":"host"`, `"CgroupnsMode":"host"`,
		`"Devices":[{"PathOnHost":"/dev/sda"}]`, `"Devices":[null]`, `"DeviceCgroupRules":["a *:* rwm"]`, `"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["x/y=z"]}]`, `"Runtime":"other"`,
		`"Sysctls":{"kernel.core_pattern":"x"}`, `"Annotations":{"a":"b"}`, `"OomKillDisable":true`, `"OomScoreAdj":-1`, `"CpuRealtimeRuntime":1`, `"CpuRealtimePeriod":1`,
		`"Ulimits":[{"Name":"rtprio","Hard":1}]`, `"Ulimits":[{"Name":"nofile","Hard":-1}]`, `"Ulimits":[null]`, `"BlkioDeviceReadBps":[null]`, `"BlkioDeviceWriteIOps":[{"Path":"/root/x"}]`, `"BlkioWeightDevice":[{"Path":"/dev/../x"}]`, `"LogConfig":{"Type":"syslog"}`, `"LogConfig":{"Config":{"syslog-address":"x"}}`, `"StorageOpt":{"dm.fs":"x"}`,
		`"PortBindings":{"80/tcp":[{"HostPort":"80"}]}`, `"PortBindings":{"80/tcp":[{"HostPort":"8080"},{"HostPort":"1-65535"}]}`, `"PortBindings":{"80/tcp":[{"HostPort":"0-9"}]}`,
		`"RestartPolicy":{"Name":"ever"}`, `"Binds":["v:/d:rshared"]`, `"Binds":["v:/d:ro,Z"]`, `"VolumesFrom":["x:z"]`, `"Mounts":[{"Type":"npipe"}]`,
		`"Mounts":[{"Type":"volume","Target":"/d","VolumeOptions":{"DriverConfig":{"Options":{"device":"/etc"}}}}]`, `"VolumeDriver":"other"`,
		`"Mounts":[{"Type":"bind","Source":"/x","Target":"/d","BindOptions":{"Propagation":"rshared"}}]`,
	},
	false: {
		``, `"CapAdd":["CHOWN","CAP_NET_RAW"],"CapDrop":["ALL"]`, `"SecurityOpt":["no-new-privileges","no-new-privileges:true","seccomp=builtin","apparmor=docker-default"]`, `"MaskedPaths":null,"ReadonlyPaths":null`,
		`"NetworkMode":"bridge","IpcMode":"shareable","CgroupnsMode":"private"`, `"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}],"Runtime":"nvidia"`, `"Sysctls":{"net.ipv4.ip_unprivileged_port_start":"0"}`,
		`"OomKillDisable":false,"OomScoreAdj":5,"Memory":5,"NanoCpus":5`, `"Ulimits":[{"Name":"nofile","Hard":1048576,"Soft":5},{"Name":"memlock","Hard":-1,"Soft":-1}],"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1}]`, `"LogConfig":{"Type":"local","Config":{"max-size":"1m"}}`,
		`"StorageOpt":{"Size":"1g"}`, `"PortBindings":{"80/tcp":[{"HostPort":"8080-8090"},{"HostPort":""},{"HostPort":"0","HostIp":"1.2.3.4"}]}`, `"RestartPolicy":{"Name":"always"}`, `"GroupAdd":["0"]`,
		`"Binds":["v:/d:ro"],"Mounts":[{"Type":"tmpfs","Target":"/t"},{"Type":"volume","Target":"/d"}],"Tmpfs":{"/x":""}`,
	},
}

// FuzzHostRules wants no body that is let through to ask, as Engines old and new read
// what is forwarded, for what the profile confined forbids.
func FuzzHostRules(f *testing.F) {
	confined := shipped(f, "confined")
	for _, list := range wishes {
		for _, wish := range list {
			f.Add([]byte(`{"Image":"x","HostConfig":{` + wish + `}}`))
			f.Add([]byte(`{"Image":"x",` + strings.TrimSuffix(wish+`,`, `,,`) + `"x":1}`))
		}
	}
	f.Add([]byte(`{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"n":{"DriverOpts":{"a":"b"}},"host":null}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		forwarded, ok := admitted(confined, body)
		if !ok {
			return
		}
		got, err := bodies.Read(string(forwarded))
		if err != nil || got.TopLevel || got.Host == nil {
			t.Fatalf("%q is forwarded as %q: %+v, %v", body, forwarded, got, err)
		}
		if bad := forbidden(got.Host, got.Networking); len(bad) > 0 {
			t.Fatalf("%q is forwarded as %q, with %v", body, forwarded, bad)
		}
	})
}

// TestTheOracleBites wants the rules and the oracle to agree on every wish.
func TestTheOracleBites(t *testing.T) {
	confined := shipped(t, "confined")
	for bad, list := range wishes {
		for _, wish := range list {
			body := `{"Image":"x","HostConfig":{` + wish + `}}`
			read, err := bodies.Read(body)
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			// The Engine's own lists take the place of those that hold as much.
			if found := forbidden(read.Host, read.Networking); (len(found) > 0) != bad {
				t.Errorf("%s: the oracle finds %v", body, found)
			}
			if _, ok := admitted(confined, []byte(body)); ok == bad {
				t.Errorf("%s: let through: %t", body, ok)
			}
		}
	}
}

// admitted goes the way of a create request, as far as it goes without an Engine.
func admitted(p *policy.Profile, body []byte) (forwarded []byte, ok bool) {
	alice := &policy.Subject{User: "alice"}
	x := &exchange{body: body}
	var req container.CreateRequest
	if present, err := x.decode(&req); err != nil || !present || req.Config == nil {
		return nil, false
	}
	if !policy.HostVerdict(p, &req).Allowed() || !policy.VolumeDrivers(p, &req).Allowed() {
		return nil, false
	}
	resolveAll(&req)
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	policy.LabelVolumes(&req, alice, declaredBy(&req), inheritedBy(&req))
	policy.Harden(p, &req)
	policy.StampContainer(&req, alice, "/slice", testTime, nil)
	if err := x.encode(&req); err != nil {
		return nil, false
	}
	return x.body, true
}

// shipped reads a built-in profile as it stands in the daemon's file.
func shipped(t testing.TB, name string) *policy.Profile {
	t.Helper()
	text, err := os.ReadFile("../cmd/ds01-proxy/profiles.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]map[string]yaml.Node
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	p := &policy.Profile{Name: name}
	for key, node := range all[name] {
		field := reflect.ValueOf(p).Elem().FieldByNameFunc(func(f string) bool { return strings.EqualFold(f, strings.ReplaceAll(key, "_", "")) })
		if !field.IsValid() {
			if key != "publish" {
				t.Fatalf("no field for the key %s", key)
			}
			continue
		}
		if err := node.Decode(field.Addr().Interface()); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

var (
	usual      = regexp.MustCompile(`^(?i:cap_)?(?i:audit_write|chown|dac_override|fowner|fsetid|kill|mknod|net_bind_service|net_raw|setfcap|setgid|setpcap|setuid|sys_chroot)$`)
	harmlessOp = regexp.MustCompile(`^(no-new-privileges([=:](true|false)?)?|seccomp[=:]builtin|apparmor([=:](docker-default)?)?)$`)
	ownIPC     = regexp.MustCompile(`^(|none|private|shareable|container:.*)$`)
	ownMode    = regexp.MustCompile(`(?s)^(|container:.*)$`)
	ownCgroup  = regexp.MustCompile(`(?s)^(|private|container:.*)$`)
	safeSysctl = regexp.MustCompile(`^(kernel\.shm_rmid_forced|net\.ipv4\.(ip_local_(port_range|reserved_ports)|ip_unprivileged_port_start|ping_group_range|tcp_(fin_timeout|syncookies|keepalive_(intvl|probes|time))))$`)
	safeLimit  = regexp.MustCompile(`^(core|cpu|data|fsize|locks|memlock|msgqueue|nofile|nproc|rss|rttime|sigpending|stack)$`)
	safeLogOpt = regexp.MustCompile(`^(max-(size|file|buffer-size)|compress|labels(-regex)?|env(-regex)?|tag|mode|cache-(disabled|max-file|max-size|compress))$`)
	device     = regexp.MustCompile(`(?s)^/dev/([^/]*[^/.][^/]*|\.{3,})(/([^/]*[^/.][^/]*|\.{3,}))?$`)
	hostly     = regexp.MustCompile(`(^|,)(r?shared|r?slave|r?unbindable|[zZ])(,|$)`)
)

// lookedAt are the fields of HostConfig that forbidden looks at, and indifferent
// those that concern the container alone, or what others decide about.
var (
	lookedAt = strings.Fields(`Privileged CapAdd SecurityOpt MaskedPaths ReadonlyPaths NetworkMode PidMode IpcMode UTSMode UsernsMode CgroupnsMode Devices DeviceCgroupRules
		DeviceRequests Runtime Sysctls Annotations OomKillDisable OomScoreAdj CPURealtimePeriod CPURealtimeRuntime Ulimits LogConfig StorageOpt PortBindings RestartPolicy Binds VolumesFrom
		Mounts VolumeDriver CgroupParent BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps`)
	indifferent = strings.Fields(`ContainerIDFile AutoRemove ConsoleSize CapDrop DNS DNSOptions DNSSearch ExtraHosts GroupAdd Cgroup Links PublishAllPorts ReadonlyRootfs Tmpfs ShmSize
		Isolation Init CPUShares Memory NanoCPUs BlkioWeight CPUPeriod CPUQuota
		CpusetCpus CpusetMems KernelMemory KernelMemoryTCP MemoryReservation MemorySwap MemorySwappiness PidsLimit CPUCount CPUPercent IOMaximumIOps IOMaximumBandwidth Resources`)
)

// TestEveryHostFieldIsKnown wants every field of HostConfig in one of the lists.
func TestEveryHostFieldIsKnown(t *testing.T) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[container.HostConfig]()) {
		if slices.Contains(lookedAt, f.Name) == slices.Contains(indifferent, f.Name) {
			t.Errorf("HostConfig.%s is in neither list, or in both", f.Name)
		}
	}
}

// forbidden names what a container may not ask of the host by the profile confined,
// in words of its own.
func forbidden(hc *container.HostConfig, nc *network.NetworkingConfig) []string {
	var bad []string
	when := func(is bool, what string, value any) {
		if is {
			bad = append(bad, fmt.Sprint(what, " ", value))
		}
	}
	each := func(what string, list []string, fine *regexp.Regexp) {
		for _, value := range list {
			when(!fine.MatchString(value), what, value)
		}
	}
	when(hc.Privileged, "Privileged", true)
	each("CapAdd", hc.CapAdd, usual)
	each("SecurityOpt", hc.SecurityOpt, harmlessOp)
	when(hc.MaskedPaths != nil, "MaskedPaths", hc.MaskedPaths)
	when(hc.ReadonlyPaths != nil, "ReadonlyPaths", hc.ReadonlyPaths)
	when(hc.NetworkMode.IsHost(), "NetworkMode", hc.NetworkMode)
	each("PidMode", []string{string(hc.PidMode)}, ownMode)
	each("UTSMode", []string{string(hc.UTSMode)}, ownMode)
	each("UsernsMode", []string{string(hc.UsernsMode)}, ownMode)
	each("IpcMode", []string{string(hc.IpcMode)}, ownIPC)
	each("CgroupnsMode", []string{string(hc.CgroupnsMode)}, ownCgroup)
	when(len(hc.Devices)+len(hc.DeviceCgroupRules) > 0, "Devices", hc.Devices)
	for _, d := range hc.DeviceRequests {
		cdi := d.Driver == "cdi" && !slices.ContainsFunc(d.DeviceIDs, func(id string) bool { return strings.Index(id, "nvidia.com/gpu=") != 0 })
		when(d.Driver != "" && d.Driver != "nvidia" && !cdi || len(d.Options) > 0, "DeviceRequests", d)
	}
	when(!slices.Contains([]string{"", "runc", "nvidia", "io.containerd.runc.v2"}, hc.Runtime), "Runtime", hc.Runtime)
	for key := range hc.Sysctls {
		each("Sysctls", []string{key}, safeSysctl)
	}
	when(len(hc.Annotations) > 0, "Annotations", hc.Annotations)
	when(hc.OomKillDisable != nil && *hc.OomKillDisable || hc.OomScoreAdj < 0, "oom", hc.OomScoreAdj)
	when(hc.CPURealtimePeriod != 0 || hc.CPURealtimeRuntime != 0, "CpuRealtime", hc.CPURealtimeRuntime)
	for _, u := range hc.Ulimits {
		when(u == nil || !safeLimit.MatchString(u.Name) || u.Name == "nofile" && (uint64(u.Hard) > 1<<20 || uint64(u.Soft) > 1<<20), "Ulimits", u)
	}
	for _, d := range hc.BlkioWeightDevice {
		when(d == nil || !device.MatchString(d.Path), "BlkioWeightDevice", d)
	}
	for _, d := range slices.Concat(hc.BlkioDeviceReadBps, hc.BlkioDeviceWriteBps, hc.BlkioDeviceReadIOps, hc.BlkioDeviceWriteIOps) {
		when(d == nil || !device.MatchString(d.Path), "BlkioDevice", d)
	}
	when(!slices.Contains([]string{"", "json-file", "local", "none"}, hc.LogConfig.Type), "LogConfig", hc.LogConfig.Type)
	for key := range hc.LogConfig.Config {
		each("LogConfig", []string{key}, safeLogOpt)
	}
	for key := range hc.StorageOpt {
		when(!strings.EqualFold(key, "size"), "StorageOpt", key)
	}
	for _, list := range hc.PortBindings {
		for _, b := range list {
			first, last, err := nat.ParsePortRange(b.HostPort)
			when(b.HostPort != "" && err == nil && first < 1024 && first+last > 0, "PortBindings", b)
		}
	}
	when(!slices.Contains([]string{"", "no", "always", "on-failure", "unless-stopped"}, string(hc.RestartPolicy.Name)), "RestartPolicy", hc.RestartPolicy)
	options := func(what string, list []string, parts int) {
		for _, one := range list {
			all := strings.Split(one, ":")
			when(len(all) >= parts && hostly.MatchString(all[len(all)-1]), what, one)
		}
	}
	options("Binds", hc.Binds, 3)
	options("VolumesFrom", hc.VolumesFrom, 2)
	for _, m := range hc.Mounts {
		when(!slices.Contains([]string{"bind", "volume", "tmpfs", "image"}, string(m.Type)), "Mounts", m.Type)
		when(m.BindOptions != nil && strings.Trim(string(m.BindOptions.Propagation), "r") != "" && !strings.HasSuffix(string(m.BindOptions.Propagation), "private"), "Propagation", m.BindOptions)
		if v := m.VolumeOptions; v != nil && v.DriverConfig != nil {
			when(strings.Replace(v.DriverConfig.Name, "local", "", 1) != "" || len(v.DriverConfig.Options) > 0, "DriverConfig", v.DriverConfig)
		}
	}
	when(hc.VolumeDriver != "" && hc.VolumeDriver != "local", "VolumeDriver", hc.VolumeDriver)
	when(hc.CgroupParent != "" && hc.CgroupParent != "/slice", "CgroupParent", hc.CgroupParent)
	if nc == nil {
		return bad
	}
	for name, ep := range nc.EndpointsConfig {
		when(name == "host", "EndpointsConfig", name)
		for key := range endpointOptions(ep) {
			when(key != "com.docker.network.endpoint.ifname", "DriverOpts", key)
		}
	}
	return bad
}

func endpointOptions(ep *network.EndpointSettings) map[string]string {
	if ep == nil {
		return nil
	}
	return ep.DriverOpts
}
