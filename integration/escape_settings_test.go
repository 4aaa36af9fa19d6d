package integration

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

func settingHoles() []hole {
	limit := func(name string, soft, hard int) string {
		return fmt.Sprintf(`"Ulimits":[{"Name":"%s","Soft":%d,"Hard":%d}]`, name, soft, hard)
	}
	return []hole{
		{rule: "runtime", name: "of old", host: `"Runtime":"io.containerd.runtime.v1.linux"`, open: has("io.containerd.runtime.v1.linux")},
		{rule: "runtime", name: "a program's path", host: `"Runtime":"/bin/sh"`, open: taken, shut: "it must be one of the daemon's"},
		{rule: "sysctls", name: "of the container's memory", host: `"Sysctls":{"kernel.msgmax":"4242"}`, script: "cat /proc/sys/kernel/msgmax", open: prints("4242")},
		{rule: "sysctls", name: "of the container's network", host: `"Sysctls":{"net.ipv4.conf.all.route_localnet":"1"}`, script: "cat /proc/sys/net/ipv4/conf/all/route_localnet", open: prints("1")},
		{rule: "sysctls", name: "with slashes", host: `"Sysctls":{"net/ipv4/ip_unprivileged_port_start":"0"}`, open: has("net/ipv4")},
		{rule: "sysctls", name: "of the host", host: `"Sysctls":{"kernel.core_pattern":"|x"}`, open: has("core_pattern")},
		{rule: "annotations", name: "for the runtime", host: `"Annotations":{"a":"b"}`, open: has(`"Annotations":{"a":"b"}`), shut: "this Engine does not know them"},
		{rule: "oom", name: "cannot be killed", host: `"OomKillDisable":true`, open: taken},
		{rule: "oom", name: "others are killed first", host: `"OomScoreAdj":-500`, open: has(`"OomScoreAdj":-500`)},
		{rule: "oom", name: "never killed, among others", host: `"oomscoreadj":-1000,"Memory":67108864`, open: has(`"OomScoreAdj":-1000`)},
		{rule: "real-time", name: "runtime", host: `"CpuRealtimeRuntime":1000`, open: taken},
		{rule: "real-time", name: "period", host: `"CpuRealtimePeriod":1000000`, open: taken},
		{rule: "ulimits", name: "real-time priority", host: limit("rtprio", 99, 99), open: has(`"Name":"rtprio"`)},
		{rule: "ulimits", name: "niceness", host: limit("nice", 40, 40), open: has(`"Name":"nice"`)},
		{rule: "ulimits", name: "one that no profile names", host: limit("as", 7777777777, 7777777777), script: "grep address.space /proc/self/limits", open: prints("7777777777")},
		{rule: "ulimits", name: "more files than the kernel has", host: limit("nofile", 1048577, 1048577), open: has("1048577")},
		{rule: "ulimits", name: "files without end", host: limit("nofile", -1, -1), open: has(`"Hard":-1`)},
		{rule: "block-io", name: "tells whether a file is there", host: `"BlkioDeviceReadBps":[{"Path":"_DIR_/other","Rate":1}]`, open: prints("stat _DIR_/other: no such file")},
		{rule: "block-io", name: "a weight for a file", host: `"BlkioWeightDevice":[{"Path":"_MARKER_","Weight":50}]`, open: taken},
		{rule: "storage-opt", name: "of the storage driver", host: `"StorageOpt":{"dm.fs":"x"}`, open: taken, shut: "this storage driver has no such option"},
		{rule: "published-ports", name: "a low one", host: `"PortBindings":{"80/tcp":[{"HostPort":"1"}]}`, open: has(`"HostPort":"1"`)},
		{rule: "published-ports", name: "a low one on one address", host: `"PortBindings":{"80/udp":[{"HostIp":"127.0.0.1","HostPort":"53"}]}`, open: has(`"HostPort":"53"`)},
		{rule: "published-ports", name: "a low one among others", host: `"PortBindings":{"80/tcp":[{"HostPort":"8080"},{"HostPort":"1023"}]}`, open: has(`"HostPort":"1023"`)},
		{rule: "published-ports", name: "a range that begins low", host: `"PortBindings":{"80/tcp":[{"HostPort":"1-2000"}]}`, open: has(`"HostPort":"1-2000"`)},
		{rule: "published-ports", name: "in another case", host: `"portbindingſ":{"80/tcp":[{"hostport":"22"}]}`, open: has(`"HostPort":"22"`)},
		{rule: "restart-policy", name: "one that is none", host: `"RestartPolicy":{"Name":"ever"}`, open: taken, shut: "there is no such policy"},
		{rule: "mount-options", name: "a volume that is shared", host: `"Binds":["esc-v:/d:rshared"]`, open: has("rshared"), shut: "volumes have no propagation"},
		{rule: "mount-options", name: "relabels a volume", host: `"Binds":["esc-v:/d:Z"]`, open: has("esc-v:/d:Z")},
		{rule: "mount-options", name: "relabels another container's volumes", host: `"VolumesFrom":["_OWN_:z"]`, prepare: ownContainer, open: has(":z")},
		{rule: "mount-options", name: "a type that is none", host: `"Mounts":[{"Type":"npipe","Source":"x","Target":"/x"}]`, open: taken, shut: "Windows has them"},
		{rule: "volume-options", name: "reads the host's files", host: `"Mounts":[{"Type":"volume","Target":"/d","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"type":"none","o":"bind","device":"_DIR_"}}}}]`,
			script: "head -c 24 /d/marker", open: prints(secret), says: "options of the volume driver"},
		{rule: "volume-options", name: "reads the host's disk", target: "/volumes/create", body: `{"Name":"esc-v","DriverOpts":{"type":"ext4","device":"_DISK_"}}`, open: taken, says: "options of the volume driver"},
		{rule: "network-options", name: "names the host's bridge", target: "/networks/create", body: `{"Name":"esc-n","Options":{"com.docker.network.bridge.name":"ds01esc0"}}`, open: taken, says: "the network option"},
		{rule: "network-driver", name: "of other hosts", target: "/networks/create", body: `{"Name":"esc-n","Driver":"overlay"}`, open: taken, says: "the network driver", shut: "it needs a swarm"},
		{rule: "endpoint-options", name: "at creation", body: `{"Image":"busybox:local","NetworkingConfig":{"EndpointsConfig":{"bridge":{"DriverOpts":{"com.docker.network.endpoint.sysctls":"x"}}}}}`, open: taken},
		{rule: "endpoint-options", name: "at connection", target: "/networks/esc-n/connect", body: `{"Container":"_OWN_","EndpointConfig":{"DriverOpts":{"com.docker.network.endpoint.sysctls":"x"}}}`,
			prepare: func(y *yard) {
				ownContainer(y)
				y.must(lab.Alice, "POST", "/networks/create", `{"Name":"esc-n"}`)
			}, open: taken},
	}
}

// logHoles make the Engine, as root, write to places of alice's choice.
func logHoles() []hole {
	return []hole{
		{rule: "log-driver", name: "syslog to any socket", host: `"LogConfig":{"Type":"syslog","Config":{"syslog-address":"unixgram://_DIR_/log.sock"}}`, script: "echo " + secret, open: arrives("unixgram")},
		{rule: "log-driver", name: "syslog to any port of the host", host: `"logconfig":{"type":"syslog","config":{"syslog-address":"udp://_LOG_"}}`, script: "echo " + secret, open: arrives("udp")},
		{rule: "log-driver", name: "gelf", host: `"LogConfig":{"Type":"gelf","Config":{"gelf-address":"udp://127.0.0.1:9"}}`, open: has("gelf")},
		{rule: "log-driver", name: "fluentd", host: `"LogConfig":{"Type":"fluentd","Config":{}}`, open: has("fluentd")},
		{rule: "log-driver", name: "the host's journal", host: `"LogConfig":{"Type":"journald","Config":{}}`, open: has("journald")},
		{rule: "log-driver", name: "an option of another", host: `"LogConfig":{"Type":"json-file","Config":{"syslog-address":"unix:///x"}}`, open: taken, shut: "the driver has no such option"},
	}
}

// spellingHoles are one hole in the ways in which encoding/json reads a key.
func spellingHoles() []hole {
	privileged := has(`"Privileged":true`)
	var all []hole
	for name, body := range map[string]string{
		"in another case":              `{"Image":"busybox:local","HostConfig":{"privileged":true}}`,
		"in two cases":                 `{"Image":"busybox:local","HostConfig":{"Privileged":false,"PRIVILEGED":true}}`,
		"in another case further out":  `{"Image":"busybox:local","hostconfig":{"Privileged":true}}`,
		"host settings twice":          `{"Image":"busybox:local","HostConfig":{"Privileged":true},"HostConfig":{}}`,
		"host settings in two cases":   `{"Image":"busybox:local","HostConfig":{},"HOSTCONFIG":{"Privileged":true}}`,
		"with a long s":                `{"Image":"busybox:local","Ho` + "ſ" + `tConfig":{"Privileged":true}}`,
		"with escapes":                 `{"Image":"busybox:local","HostConfig":{"\u0050rivileged":true}}`,
		"null after it":                `{"Image":"busybox:local","HostConfig":{"Privileged":true,"Privileged":null}}`,
		"after what nobody knows":      `{"Image":"busybox:local","Nobody":{"HostConfig":{"Privileged":false}},"HostConfig":{"Nobody":1,"Privileged":true}}`,
		"at the top level and further": `{"Image":"busybox:local","Privileged":false,"HostConfig":{"Privileged":true}}`,
	} {
		all = append(all, hole{rule: "refuse-privileged", name: name, body: body, open: privileged})
	}
	slices.SortFunc(all, func(a, b hole) int { return strings.Compare(a.name, b.name) })
	return append(all,
		hole{rule: "refuse-privileged", name: "at the top level alone", body: `{"Image":"busybox:local","Privileged":true}`, open: privileged, dropped: true},
		hole{rule: "refuse-privileged", name: "at the top level beside null", body: `{"Image":"busybox:local","privileged":true,"HostConfig":null}`, open: privileged, dropped: true},
		hole{rule: "masked-paths", name: "at the top level alone", body: `{"Image":"busybox:local","MaskedPaths":[],"ReadonlyPaths":[]}`, open: has(`"MaskedPaths":[]`), dropped: true},
		hole{rule: "devices", name: "at the top level alone", body: `{"Image":"busybox:local","Devices":[{"PathOnHost":"_DISK_"}]}`, open: has("_DISK_"), dropped: true},
	)
}

func otherHoles() []hole {
	return []hole{
		{rule: "build-network", name: "of the host", target: "/build?nocache=1&rm=1&forcerm=1&networkmode=host", body: "FROM busybox:local\nRUN readlink /proc/self/ns/net\n", open: tellsInode("net"), says: "build steps may not use the host's network"},
		{rule: "ulimits", name: "of build steps", target: query("/build?nocache=1&rm=1&forcerm=1", "ulimits", `[{"Name":"as","Soft":7777777777,"Hard":7777777777}]`), body: "FROM busybox:local\nRUN grep address.space /proc/self/limits\n",
			open: func(_ *yard, a answer) bool { return strings.Contains(a.body, "7777777777") }},
		{rule: "oom", name: "of a container that runs", target: "/containers/_OWN_/update", body: `{"OomKillDisable":true}`, prepare: ownContainer, open: taken},
		{rule: "devices", name: "of a container that runs", target: "/containers/_OWN_/update", body: `{"Devices":[{"PathOnHost":"_DISK_"}]}`, prepare: ownContainer, open: has("_DISK_"), shut: "they cannot be changed"},
		{rule: "device-cgroup-rules", name: "of a container that runs", target: "/containers/_OWN_/update", body: `{"devicecgrouprules":["a *:* rwm"]}`, prepare: ownContainer, open: has("a *:* rwm"), shut: "they cannot be changed"},
		{rule: "ulimits", name: "of a container that runs", target: "/containers/_OWN_/update", body: `{"Ulimits":[{"Name":"rtprio","Soft":9,"Hard":9}]}`, prepare: ownContainer, open: has("rtprio"), shut: "they cannot be changed"},
		{rule: "restart-policy", name: "of a container that runs", target: "/containers/_OWN_/update", body: `{"RestartPolicy":{"Name":"ever"}}`, prepare: ownContainer, open: taken, shut: "there is no such policy"},
	}
}

// tellsInode wants a build that prints a namespace of the host.
func tellsInode(namespace string) func(*yard, answer) bool {
	return func(_ *yard, a answer) bool { return strings.Contains(a.body, inode(namespace)) }
}

// TestEveryRuleHasAHole wants a hole for each rule about a container's creation that
// the profile confined has. Groups are free there.
func TestEveryRuleHasAHole(t *testing.T) {
	seen := map[string]bool{"group-add": true}
	for _, h := range holes() {
		seen[h.rule] = true
	}
	for _, rule := range rules() {
		if !seen[rule] {
			t.Errorf("no hole shows what the rule %s is for", rule)
		}
	}
}

// TestNullsThatLockTheEngine sends what an Engine fails on while it holds a container's
// lock: it goes on to hang on whatever looks at the container, and at its own end. The
// Engine of these tests never gets to see it.
func TestNullsThatLockTheEngine(t *testing.T) {
	for host, rule := range map[string]string{
		`"Ulimits":[null]`: "ulimits", `"ulimitſ":[{"Name":"core"},null]`: "ulimits", `"BlkioWeightDevice":[null]`: "block-io", `"BlkioDeviceReadBps":[null]`: "block-io",
		`"BlkioDeviceWriteBps":[null]`: "block-io", `"BlkioDeviceReadIOps":[null]`: "block-io", `"BlkioDeviceWriteIOps":[null]`: "block-io",
	} {
		got := ask(t, theProxy.Socket(lab.Alice), "POST", "/containers/create", `{"Image":"busybox:local","HostConfig":{`+host+`}}`)
		if got.status != http.StatusForbidden || !strings.Contains(got.body, "(rule "+rule+",") {
			t.Errorf("%s: %d %s", host, got.status, got.body)
		}
	}
}
