package policy

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
)

// confined, as the daemon ships it, as far as these tests need it.
var (
	confined = &Profile{
		Name: "confined", GPUs: true, Runtime: []string{"nvidia"}, Sysctl: []string{"net.ipv4.ip_unprivileged_port_start"},
		Ulimit: []string{"memlock", "nofile", "stack"}, LogDriver: []string{"json-file", "local", "none"}, StorageOpt: []string{"size"},
		MinPort: 1024, Restart: []string{"no", "on-failure", "always", "unless-stopped"}, GroupAdd: []string{"any"},
	}
	strict = &Profile{
		Name: "strict", CapDrop: []string{"ALL"}, CapAdd: []string{"NET_BIND_SERVICE"}, NoNewPrivileges: true,
		Restart: []string{"no"}, MinPort: 1024, PublishIP: []string{"127.0.0.1"},
	}
	lab = &Profile{
		Name: "ml-lab", CapAdd: []string{"SYS_PTRACE"}, IPC: []string{"host"}, Devices: []string{"/dev/fuse", "/dev/nvidia*"},
		SecurityOpt: []string{"seccomp=unconfined", "systempaths=unconfined"}, Network: []string{"host"}, PID: []string{"host"},
		UTS: []string{"host"}, Userns: []string{"host"}, Cgroupns: []string{"host"}, DeviceCgroupRules: []string{"c 10:229 rwm"}, Annotation: []string{"a"},
	}
	free = &Profile{Name: "open", OwnershipOnly: true}
	all  = &Profile{Name: "all", CapAdd: []string{"ALL"}, Privileged: true, SecurityOpt: []string{"label=*"}}
)

func request(t *testing.T, hostConfig string) *container.CreateRequest {
	t.Helper()
	var req container.CreateRequest
	if err := json.Unmarshal([]byte(`{"Image":"x","HostConfig":`+hostConfig+`}`), &req); err != nil {
		t.Fatalf("%s: %v", hostConfig, err)
	}
	return &req
}

// TestHostRules has, for each rule, what it refuses and what it lets through.
func TestHostRules(t *testing.T) {
	masked, err := json.Marshal(maskedPaths)
	if err != nil {
		t.Fatal(err)
	}
	readonly, err := json.Marshal(readonlyPaths)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]int)
	for _, c := range []struct {
		p    *Profile
		host string
		// rule is the rule that refuses; "" where the request is let through.
		rule string
		text string
	}{
		{confined, `{}`, "", ""}, {confined, `null`, "", ""}, {&Profile{}, `{}`, "", ""}, {strict, `{}`, "", ""},
		{confined, `{"Privileged":true}`, "refuse-privileged", "--privileged is not allowed here (rule refuse-privileged, profile confined). GPUs need --gpus"},
		{all, `{"Privileged":true}`, "", ""}, {free, `{"Privileged":true,"PidMode":"host","Runtime":"evil"}`, "", ""},

		{confined, `{"CapAdd":["SYS_ADMIN"]}`, "capabilities", "--cap-add SYS_ADMIN is not"},
		{confined, `{"CapAdd":["cap_sys_ptrace"]}`, "capabilities", ""}, {confined, `{"CapAdd":["ALL"]}`, "capabilities", ""},
		{confined, `{"CapAdd":["chown","CAP_NET_RAW"]}`, "", ""}, {confined, `{"CapDrop":["ALL"]}`, "", ""},
		{lab, `{"CapAdd":["CAP_SYS_PTRACE"]}`, "", ""}, {lab, `{"CapAdd":["SYS_PTRACE","SYS_MODULE"]}`, "capabilities", "Allowed: SYS_PTRACE."},
		{strict, `{"CapAdd":["CHOWN"]}`, "capabilities", ""}, {strict, `{"CapAdd":["NET_BIND_SERVICE"]}`, "", ""}, {all, `{"CapAdd":["ALL","SYS_ADMIN"]}`, "", ""},

		{confined, `{"SecurityOpt":["no-new-privileges","no-new-privileges:true","no-new-privileges=true","no-new-privileges=false","seccomp=builtin","apparmor=docker-default"]}`, "", ""},
		{strict, `{"SecurityOpt":["no-new-privileges=false"]}`, "security-opt", ""}, {strict, `{"SecurityOpt":["no-new-privileges:false"]}`, "security-opt", ""},
		{confined, `{"SecurityOpt":["seccomp=unconfined"]}`, "security-opt", ""}, {confined, `{"SecurityOpt":["seccomp:unconfined"]}`, "security-opt", ""},
		{lab, `{"SecurityOpt":["seccomp:unconfined"]}`, "", ""},
		{confined, `{"SecurityOpt":["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\",\"architectures\":[]}"]}`, "security-opt", "seccomp=… is not"},
		{confined, `{"SecurityOpt":["apparmor=unconfined"]}`, "security-opt", ""}, {confined, `{"SecurityOpt":["label=disable"]}`, "security-opt", ""},
		{confined, `{"SecurityOpt":["disable"]}`, "security-opt", ""}, {confined, `{"SecurityOpt":["label:type:spc_t"]}`, "security-opt", ""},
		{confined, `{"SecurityOpt":["writable-cgroups=true"]}`, "security-opt", ""}, {confined, `{"SecurityOpt":["systempaths=unconfined"]}`, "security-opt", ""},
		{confined, `{"SecurityOpt":["no-new-privileges=true:x"]}`, "security-opt", ""}, {confined, `{"SecurityOpt":[""]}`, "security-opt", ""},
		{all, `{"SecurityOpt":["label=type:x"]}`, "", ""},

		{confined, `{"MaskedPaths":[]}`, "masked-paths", "systempaths=unconfined"}, {confined, `{"ReadonlyPaths":[]}`, "masked-paths", ""},
		{confined, `{"MaskedPaths":["/proc/kcore"]}`, "masked-paths", ""}, {confined, `{"maskedpaths":[],"readonlypaths":[]}`, "masked-paths", ""},
		{confined, `{"MaskedPaths":null,"ReadonlyPaths":null}`, "", ""}, {confined, `{"MaskedPaths":` + string(masked) + `,"ReadonlyPaths":` + string(readonly) + `}`, "", ""},
		{lab, `{"MaskedPaths":[],"ReadonlyPaths":[]}`, "", ""},

		{confined, `{"NetworkMode":"host"}`, "host-network", "--network host is not"}, {lab, `{"NetworkMode":"host"}`, "", ""},
		{confined, `{"NetworkMode":"bridge"}`, "", ""}, {confined, `{"NetworkMode":"none"}`, "", ""}, {confined, `{"NetworkMode":"container:x"}`, "", ""},
		{confined, `{"PidMode":"host"}`, "host-pid", ""}, {confined, `{"PidMode":"container:x"}`, "", ""}, {confined, `{"PidMode":"other"}`, "host-pid", ""}, {lab, `{"PidMode":"host"}`, "", ""},
		{confined, `{"IpcMode":"host"}`, "host-ipc", ""}, {confined, `{"IpcMode":"shareable"}`, "", ""}, {lab, `{"IpcMode":"host"}`, "", ""},
		{confined, `{"UTSMode":"host"}`, "host-uts", ""}, {lab, `{"UTSMode":"host"}`, "", ""},
		{confined, `{"UsernsMode":"host"}`, "host-userns", ""}, {lab, `{"UsernsMode":"host"}`, "", ""},
		{confined, `{"CgroupnsMode":"host"}`, "host-cgroupns", ""}, {confined, `{"CgroupnsMode":"private"}`, "", ""}, {lab, `{"CgroupnsMode":"host"}`, "", ""},

		{confined, `{"Devices":[{"PathOnHost":"/dev/sda","PathInContainer":"/dev/sda","CgroupPermissions":"rwm"}]}`, "devices", "--device /dev/sda"},
		{lab, `{"Devices":[{"PathOnHost":"/dev/fuse"},{"PathOnHost":"/dev/nvidia0"}]}`, "", ""}, {lab, `{"Devices":[{"PathOnHost":"/dev/nvidia0/../sda"}]}`, "devices", ""},
		{lab, `{"Devices":[{"PathOnHost":"/dev/nvidia/x"}]}`, "devices", ""}, {lab, `{"Devices":[{"PathOnHost":""}]}`, "devices", ""},
		{confined, `{"DeviceCgroupRules":["a *:* rwm"]}`, "device-cgroup-rules", ""}, {lab, `{"DeviceCgroupRules":["c 10:229 rwm"]}`, "", ""},
		{confined, `{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}`, "", ""}, {lab, `{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}`, "gpus", ""},
		{confined, `{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=all"]}]}`, "", ""}, {confined, `{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["evil/x=y"]}]}`, "gpus", ""},
		{confined, `{"DeviceRequests":[{"Driver":"other"}]}`, "gpus", ""}, {confined, `{"DeviceRequests":[{"Driver":"nvidia","Options":{"a":"b"}}]}`, "gpus", ""},

		{confined, `{"Runtime":"runc"}`, "", ""}, {confined, `{"Runtime":"nvidia"}`, "", ""}, {confined, `{"Runtime":"/tmp/evil"}`, "runtime", "Allowed: runc, nvidia."},
		{confined, `{"Sysctls":{"kernel.core_pattern":"x"}}`, "sysctls", ""}, {confined, `{"Sysctls":{"net.ipv4.ip_unprivileged_port_start":"0"}}`, "", ""},
		{confined, `{"Annotations":{"a":"b"}}`, "annotations", ""}, {lab, `{"Annotations":{"a":"b"}}`, "", ""},
		{confined, `{"OomKillDisable":true}`, "oom", ""}, {confined, `{"OomKillDisable":false,"OomScoreAdj":500}`, "", ""}, {confined, `{"OomScoreAdj":-1}`, "oom", ""},
		{confined, `{"CpuRealtimeRuntime":1}`, "real-time", ""}, {confined, `{"CpuRealtimePeriod":1}`, "real-time", ""},
		{confined, `{"Ulimits":[{"Name":"rtprio","Hard":99,"Soft":99}]}`, "ulimits", ""}, {confined, `{"Ulimits":[{"Name":"memlock","Hard":-1,"Soft":-1}]}`, "", ""}, {confined, `{"Ulimits":[{"Name":"memlock"},null]}`, "ulimits", "--ulimit null"},
		{confined, `{"BlkioWeightDevice":[{"Path":"/dev/sda","Weight":10}],"BlkioDeviceReadBps":[{"Path":"/dev/mapper/x","Rate":1}]}`, "", ""}, {confined, `{"BlkioWeightDevice":[null]}`, "block-io", "--blkio-weight-device is"},
		{confined, `{"BlkioDeviceReadBps":[null]}`, "block-io", "--device-read-bps"}, {confined, `{"BlkioDeviceWriteBps":[{"Path":"/root/x"}]}`, "block-io", "--device-write-bps"}, {confined, `{"BlkioDeviceReadIOps":[{"Path":"/dev/../root"}]}`, "block-io", ""},
		{confined, `{"BlkioDeviceWriteIOps":[{"Path":""}]}`, "block-io", ""}, {confined, `{"BlkioWeightDevice":[{"Path":"/etc/shadow"}]}`, "block-io", ""},
		{confined, `{"Ulimits":[{"Name":"nofile","Hard":1048576,"Soft":1}]}`, "", ""}, {confined, `{"Ulimits":[{"Name":"nofile","Hard":1048577,"Soft":1}]}`, "ulimits", "The most is 1048576"}, {confined, `{"Ulimits":[{"Name":"nofile","Hard":-1,"Soft":1}]}`, "ulimits", ""},
		{confined, `{"LogConfig":{"Type":"syslog","Config":{"syslog-address":"unix:///x"}}}`, "log-driver", ""}, {confined, `{"LogConfig":{"Type":"json-file","Config":{"max-size":"1m"}}}`, "", ""},
		{confined, `{"LogConfig":{"Config":{"syslog-address":"x"}}}`, "log-driver", ""}, {confined, `{"LogConfig":{"Type":"local"}}`, "", ""},
		{confined, `{"StorageOpt":{"size":"1g"}}`, "", ""}, {confined, `{"StorageOpt":{"lcow.x":"1"}}`, "storage-opt", ""},

		{confined, `{"PortBindings":{"80/tcp":[{"HostPort":"8080"},{"HostPort":""},{"HostPort":"0"},{"HostIp":"1.2.3.4","HostPort":"2000-2010"}]}}`, "", ""},
		{confined, `{"PortBindings":{"80/tcp":[{"HostPort":"80"}]}}`, "published-ports", "from 1024 on"}, {confined, `{"PortBindings":{"80/tcp":[{"HostPort":"8080"},{"HostPort":"1-65535"}]}}`, "published-ports", ""},
		{confined, `{"PortBindings":{"80/tcp":[{"HostPort":"2000-80"}]}}`, "published-ports", ""}, {confined, `{"PortBindings":{"80/tcp":[{"HostPort":"0-1"}]}}`, "published-ports", ""},
		{confined, `{"PortBindings":{"80/tcp":[{"HostPort":" 80"}]}}`, "published-ports", ""}, {confined, `{"PortBindings":{"80/tcp":[{"HostPort":"70000"}]}}`, "published-ports", ""},
		{strict, `{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}`, "published-ports", ""}, {strict, `{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}]}}`, "", ""},
		{&Profile{}, `{"PortBindings":{"80/tcp":[{"HostPort":"1023"}]}}`, "published-ports", "from 1024 on"}, {&Profile{}, `{"PortBindings":{"80/tcp":[{"HostPort":"1024"}]}}`, "", ""},
		{&Profile{MinPort: 1}, `{"PortBindings":{"80/tcp":[{"HostPort":"1"}]}}`, "", ""},
		{strict, `{"PublishAllPorts":true}`, "published-ports", ""}, {confined, `{"PublishAllPorts":true}`, "", ""},
		{confined, `{"RestartPolicy":{"Name":"always"}}`, "", ""}, {strict, `{"RestartPolicy":{"Name":"always"}}`, "restart-policy", "Allowed: no."},
		{confined, `{"Binds":["v:/dev"]}`, "mount-options", ""}, {confined, `{"Binds":["v:/devices"]}`, "", ""}, {confined, `{"Binds":["/proc/keys"]}`, "mount-options", ""},
		{confined, `{"Mounts":[{"Type":"volume","Target":"/x/../sys/fs"}]}`, "mount-options", ""}, {confined, `{"Tmpfs":{"dev/./":""}}`, "mount-options", ""},
		{confined, `{"Tmpfs":{"/dev/shm":""},"Mounts":[{"Type":"tmpfs","Target":"/dev/mqueue/x"}]}`, "", ""},
		{confined, `{"GroupAdd":["docker"]}`, "", ""}, {strict, `{"GroupAdd":["0"]}`, "group-add", ""},
		{confined, `{"Binds":["v:/d","v:/d:ro","v:/d:rw,nocopy","/d"]}`, "", ""}, {confined, `{"Binds":["/x:/d:rshared"]}`, "mount-options", ""}, {confined, `{"Binds":["/x:/d:ro,slave"]}`, "mount-options", ""}, {confined, `{"Binds":["/x:/d:Z"]}`, "mount-options", ""},
		{confined, `{"Mounts":[{"Type":"bind","Source":"/x","Target":"/d","BindOptions":{"Propagation":"shared"}}]}`, "mount-options", ""},
		{confined, `{"Mounts":[{"Type":"bind","Source":"/x","Target":"/d","BindOptions":{"Propagation":"rprivate"}},{"Type":"tmpfs","Target":"/t"}]}`, "", ""},
		{confined, `{"VolumesFrom":["a","a:","a:ro","a:rw"]}`, "", ""}, {confined, `{"VolumesFrom":["a:Z"]}`, "mount-options", "--volumes-from a:Z"}, {confined, `{"VolumesFrom":["a:ro,z"]}`, "mount-options", ""},
		{confined, `{"Mounts":[{"Type":"npipe"}]}`, "mount-options", ""}, {confined, `{"Mounts":[{"Type":""}]}`, "mount-options", ""},
	} {
		v := HostVerdict(c.p, request(t, c.host))
		if v.Allowed() != (c.rule == "") || c.rule != "" && v.Rule != c.rule || !strings.Contains(v.Reason, c.text) {
			t.Errorf("%s: %s: %+v, want %q with %q", c.p.Name, c.host, v, c.rule, c.text)
		}
		if c.rule != "" {
			seen[c.rule]++
		}
	}
	req := request(t, `{}`)
	if err := json.Unmarshal([]byte(`{"EndpointsConfig":{"n":{"DriverOpts":{"com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.forwarding=1"}},"m":null}}`), &req.NetworkingConfig); err != nil {
		t.Fatal(err)
	}
	if v := HostVerdict(confined, req); v.Rule != "endpoint-options" {
		t.Errorf("endpoint options: %+v", v)
	}
	seen["endpoint-options"]++
	onHost := request(t, `{"NetworkMode":"bridge"}`)
	onHost.NetworkingConfig = &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"host": nil}}
	if v := HostVerdict(confined, onHost); v.Rule != "host-network" {
		t.Errorf("an endpoint on the host's network: %+v", v)
	}
	if v := HostVerdict(lab, onHost); !v.Allowed() {
		t.Errorf("an endpoint on the host's network by the profile ml-lab: %+v", v)
	}
	for _, ep := range req.NetworkingConfig.EndpointsConfig {
		if v := ConnectVerdict(confined, ep); v.Allowed() != (ep == nil) {
			t.Errorf("connect with %+v: %+v", ep, v)
		}
		if v := ConnectVerdict(free, ep); !v.Allowed() {
			t.Errorf("connect with %+v by the profile open: %+v", ep, v)
		}
	}
	for _, rule := range HostRules {
		if seen[rule.Name] == 0 {
			t.Errorf("nothing shows what the rule %s refuses", rule.Name)
		}
	}
}

// TestChangesFollowTheSameRules looks at updates, execs and the limits of builds.
func TestChangesFollowTheSameRules(t *testing.T) {
	for text, want := range map[string]string{
		`{"Memory":1,"RestartPolicy":{"Name":"always"}}`: "", `{"OomKillDisable":true}`: "oom", `{"CpuRealtimeRuntime":5}`: "real-time",
		`{"Devices":[{"PathOnHost":"/dev/sda"}]}`: "devices", `{"RestartPolicy":{"Name":"ever"}}`: "restart-policy",
	} {
		var u container.UpdateConfig
		if err := json.Unmarshal([]byte(text), &u); err != nil {
			t.Fatal(err)
		}
		if v := UpdateVerdict(confined, &u); v.Allowed() != (want == "") || want != "" && v.Rule != want {
			t.Errorf("%s: %+v, want %s", text, v, want)
		}
	}
	for _, c := range []struct {
		p    *Profile
		want bool
	}{{confined, false}, {strict, false}, {all, true}, {free, true}} {
		if v := ExecVerdict(c.p, &container.ExecOptions{Privileged: true}); v.Allowed() != c.want {
			t.Errorf("exec --privileged with %s: %+v", c.p.Name, v)
		}
		if v := ExecVerdict(c.p, &container.ExecOptions{User: "root"}); !v.Allowed() {
			t.Errorf("exec -u root with %s: %+v", c.p.Name, v)
		}
	}
	if v := BuildUlimits(confined, []*container.Ulimit{{Name: "rtprio", Hard: 1}}); v.Rule != "ulimits" || v.Allowed() {
		t.Errorf("a build's limits: %+v", v)
	}
}

// TestHarden sets what a profile sets on every container, once.
func TestHarden(t *testing.T) {
	for host, want := range map[string]string{
		`{}`: "[ALL] [no-new-privileges]", `{"CapDrop":["cap_all"],"SecurityOpt":["no-new-privileges:true"]}`: "[cap_all] [no-new-privileges:true]",
		`{"CapDrop":["all"],"CapAdd":["NET_BIND_SERVICE"]}`: "[all] [no-new-privileges]",
	} {
		req := request(t, host)
		Harden(strict, req)
		if got := fmt.Sprint(req.HostConfig.CapDrop, " ", req.HostConfig.SecurityOpt); got != want {
			t.Errorf("%s becomes %s, want %s", host, got, want)
		}
	}
	req := request(t, `{"MaskedPaths":["a"],"ReadonlyPaths":["b"]}`)
	Harden(confined, req)
	if req.HostConfig.MaskedPaths != nil || req.HostConfig.ReadonlyPaths != nil || len(req.HostConfig.CapDrop) > 0 {
		t.Errorf("confined: %+v", req.HostConfig)
	}
}

// TestManyPorts publishes more ports than one container may.
func TestManyPorts(t *testing.T) {
	p := &Profile{Name: "p"}
	for n, ok := range map[int]bool{maxPorts: true, maxPorts + 1: false} {
		one, many, all := hostConfig(t, `{}`), hostConfig(t, `{}`), hostConfig(t, `{"PublishAllPorts":true}`)
		one.HostConfig.PortBindings, many.HostConfig.PortBindings = nat.PortMap{}, nat.PortMap{}
		all.ExposedPorts = nat.PortSet{}
		for i := range n {
			port := nat.Port(strconv.Itoa(2000+i) + "/tcp")
			one.HostConfig.PortBindings["80/tcp"] = append(one.HostConfig.PortBindings["80/tcp"], nat.PortBinding{HostPort: strconv.Itoa(2000 + i)})
			many.HostConfig.PortBindings[port] = nil
			all.ExposedPorts[port] = struct{}{}
		}
		for _, req := range []*container.CreateRequest{one, many, all} {
			if v := HostVerdict(p, req); v.Allowed() != ok {
				t.Errorf("%d: %v", n, v)
			}
		}
		if v := ExposedPorts(p, hostConfig(t, `{"PublishAllPorts":true}`), n); v.Allowed() != ok {
			t.Errorf("%d of the image: %v", n, v)
		}
		if v := ExposedPorts(p, hostConfig(t, `{}`), n); !v.Allowed() {
			t.Errorf("%d of the image, not published: %v", n, v)
		}
	}
}
