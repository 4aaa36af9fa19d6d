package integration

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
)

// creation is an attack by a field of a container's creation.
func creation(field, name, ref, body string, worked func(*world, answer) bool) attack {
	return attack{row: "POST /containers/create", field: field, name: name, ref: ref, target: "/containers/create", body: body, worked: worked}
}

// hosted is a container's creation with settings of its host.
func hosted(settings string) string {
	return `{"Image":"busybox:local","Cmd":["sleep","100000"],"HostConfig":{"Init":true,` + settings + `}}`
}

// with changes an attack.
func (a attack) with(change func(a *attack)) attack {
	change(&a)
	return a
}

// own is a creation that the proxy turns into one of alice's own.
func own(a *attack) { a.status, a.alters = http.StatusCreated, true }

// refusedAs is a creation that the proxy refuses in other words.
func refusedAs(says string) func(*attack) { return func(a *attack) { a.says = says } }

// fails marks an attack that does not work on the raw Engine.
func fails(why string) func(*attack) { return func(a *attack) { a.rawFails = why } }

// createAttacks go by the fields of a container's creation.
func createAttacks() []attack {
	const network = "this network belongs to bob"
	const volume = "this volume belongs to bob"
	const options = "options of the volume driver"
	return []attack{
		creation("VolumesFrom", "", "run", hosted(`"VolumesFrom":["_REF_"]`), mounts("atk-vol")),
		creation("VolumesFrom", "read-only", "run", hosted(`"VolumesFrom":["_REF_:ro"]`), mounts("atk-vol")),
		creation("VolumesFrom", "after one's own", "run", hosted(`"VolumesFrom":["atk-own","_REF_"]`), mounts("atk-vol")),
		creation("VolumesFrom", "in another case", "run", hosted(`"volumesfrom":["_REF_"]`), mounts("atk-vol")),
		creation("VolumesFrom", "in two cases", "run", hosted(`"VolumesFrom":["atk-own"],"VOLUMESFROM":["_REF_"]`), mounts("atk-vol")),
		creation("VolumesFrom", "with a long s", "run", hosted(`"Volumeſfrom":["_REF_"]`), mounts("atk-vol")),
		creation("VolumesFrom", "host settings in two cases", "run", `{"Image":"busybox:local","HostConfig":{},"hostconfig":{"VolumesFrom":["_REF_"]}}`, mounts("atk-vol")),
		creation("VolumesFrom", "with escapes", "", hosted(`"VolumesFrom":["\u0061\u0074\u006b-run"]`), mounts("atk-vol")),

		creation("Links", "", "held", hosted(`"Links":["_REF_:peer"]`), leaksEnvironment),
		creation("Links", "without an alias", "held", hosted(`"Links":["_REF_"]`), linked),
		creation("Links", "as inspect shows them", "", hosted(`"Links":["/atk-held:/x/peer"]`), linked),
		creation("Links", "in another case", "held", hosted(`"links":["_REF_:peer"]`), linked),
		creation("Links", "by a link's alias", "", hosted(`"Links":["atk-off/peer:peer"]`), linked),

		creation("NetworkMode", "container", "run", hosted(`"NetworkMode":"container:_REF_"`), joins("net")),
		creation("NetworkMode", "container in two cases", "run", hosted(`"NetworkMode":"none","networkMode":"container:_REF_"`), moded),
		creation("NetworkMode", "network", "net", hosted(`"NetworkMode":"_REF_"`), inNetwork).with(refusedAs(network)),
		creation("NetworkMode", "network in another case", "net", hosted(`"NETWORKMODE":"_REF_"`), moded).with(refusedAs(network)),
		creation("PidMode", "", "run", hosted(`"PidMode":"container:_REF_"`), joins("pid")),
		creation("PidMode", "in another case", "run", hosted(`"pidmode":"container:_REF_"`), moded),
		creation("IpcMode", "", "run", hosted(`"IpcMode":"container:_REF_"`), joins("ipc")),
		creation("other modes", "UTSMode", "run", hosted(`"UTSMode":"container:_REF_"`), joins("uts")).with(fails("there is no such mode")),
		creation("other modes", "CgroupnsMode", "run", hosted(`"CgroupnsMode":"container:_REF_"`), nil).with(fails("there is no such mode")),
		creation("other modes", "Cgroup", "run", hosted(`"Cgroup":"container:_REF_"`), joins("cgroup")).with(fails("nothing reads it")),

		creation("EndpointsConfig", "", "net", `{"Image":"busybox:local","HostConfig":{"NetworkMode":"_REF_"},"NetworkingConfig":{"EndpointsConfig":{"_REF_":{}}}}`, inNetwork).with(refusedAs(network)),
		creation("EndpointsConfig", "without a mode", "net", `{"Image":"busybox:local","NetworkingConfig":{"EndpointsConfig":{"_REF_":{}}}}`, endpoint).with(refusedAs(network)),
		creation("EndpointsConfig", "in other cases", "net", `{"Image":"busybox:local","networkingconfig":{"endpointsconfig":{"_REF_":{}}}}`, endpoint).with(refusedAs(network)),
		creation("EndpointsConfig", "null settings", "net", `{"Image":"busybox:local","NetworkingConfig":{"EndpointsConfig":{"_REF_":null}}}`, endpoint).with(refusedAs(network)).with(fails("there must be settings")),
		creation("NetworkID", "", "", `{"Image":"busybox:local","Cmd":["sleep","1000"],"NetworkingConfig":{"EndpointsConfig":{"bridge":{"NetworkID":"_NET_"}}}}`, inNetwork).with(own).with(fails("the bridge goes by its name")),
		creation("NetworkID", "in one's own network", "", `{"Image":"busybox:local","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"atk-net-own"},"NetworkingConfig":{"EndpointsConfig":{"atk-net-own":{"networkid":"_NET_"}}}}`, inNetwork).with(own),

		creation("Binds", "", "vol", hosted(`"Binds":["_REF_:/d"]`), mounts("atk-vol")).with(refusedAs(volume)),
		creation("Binds", "read-only", "vol", hosted(`"Binds":["_REF_:/d:ro"]`), mounts("atk-vol")).with(refusedAs(volume)),
		creation("Binds", "in another case", "vol", hosted(`"binds":["_REF_:/d"]`), mounts("atk-vol")).with(refusedAs(volume)),
		creation("Binds", "in two cases", "vol", hosted(`"Binds":["_REF_:/d"],"bINDS":["/d"]`), mounts("atk-vol")).with(own).with(fails("the later list takes the place of the earlier")),
		creation("Binds", "in two cases, bob's last", "vol", hosted(`"Binds":["/d"],"bINDS":["_REF_:/d"]`), mounts("atk-vol")).with(refusedAs(volume)),
		creation("Binds", "the volume of a stopped container", "idle vol", hosted(`"Binds":["_REF_:/d"]`), mounts("atk-vol-idle")).with(refusedAs(volume)),
		creation("Mounts", "", "vol", hosted(`"Mounts":[{"Type":"volume","Source":"_REF_","Target":"/d"}]`), mounts("atk-vol")).with(refusedAs(volume)),
		creation("Mounts", "in other cases", "vol", hosted(`"mounts":[{"type":"volume","source":"_REF_","target":"/d"}]`), mounts("atk-vol")).with(refusedAs(volume)),
		creation("Mounts", "with bob's labels", "vol", hosted(`"Mounts":[{"Type":"volume","Source":"_REF_","Target":"/d","VolumeOptions":{"Labels":{"ds01.user":"bob"}}}]`), mounts("atk-vol")).with(refusedAs(volume)),
		creation("Mounts", "a new volume with bob's labels", "", hosted(`"Mounts":[{"Type":"volume","Source":"atk-vol-forged","Target":"/d","VolumeOptions":{"Labels":{"ds01.user":"bob"}}}]`), labelledBobs("/volumes/atk-vol-forged")).with(own),
		creation("DriverConfig", "", "", hosted(`"Mounts":[{"Type":"volume","Target":"/d","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"type":"none","o":"bind","device":"_VOLUME_"}}}}]`), reads("/d/f", "atk-secret-volume")).with(refusedAs(options)),
		creation("DriverConfig", "without a name", "", hosted(`"Mounts":[{"Type":"volume","Target":"/d","VolumeOptions":{"DriverConfig":{"Options":{"type":"none","o":"bind","device":"_VOLUME_"}}}}]`), onItsFiles).with(refusedAs(options)),
		creation("DriverConfig", "in other cases", "", hosted(`"mounts":[{"type":"volume","target":"/d","volumeoptions":{"driverconfig":{"name":"local","options":{"type":"none","o":"bind","device":"_VOLUME_"}}}}]`), onItsFiles).with(refusedAs(options)),

		creation("Labels", "", "", `{"Image":"busybox:local","Labels":{"ds01.user":"bob"}}`, ownedByBob).with(own),
		creation("Labels", "in other cases", "", `{"Image":"busybox:local","labels":{"ds01.user":"bob"},"LABELS":{"ds01.managed":"true"}}`, ownedByBob).with(own),
		creation("Labels", "with a long s", "", `{"Image":"busybox:local","Label\u017f":{"ds01.user":"bob"}}`, ownedByBob).with(own),
		creation("Labels", "of older containers", "", `{"Image":"busybox:local","Labels":{"aime.mlc.USER":"bob"}}`, func(w *world, a answer) bool {
			return a.status == http.StatusCreated && w.inspect(idIn(a)).Config.Labels["ds01.user"] != "alice"
		}).with(own),
		creation("Labels", "of the image", "", `{"Image":"_IMAGE_"}`, ownedByBob).with(own),
		creation("CgroupParent", "", "", hosted(`"CgroupParent":"_SLICE_"`), inBobsSlice).with(own),
		creation("CgroupParent", "in another case", "", hosted(`"cgroupparent":"_SLICE_"`), inBobsSlice).with(own),
		creation("CgroupParent", "by going up", "", hosted(`"CgroupParent":"/ds01.slice/../_SLICE_"`), inBobsSlice).with(own),

		creation("top level", "VolumesFrom", "run", `{"Image":"busybox:local","VolumesFrom":["_REF_"]}`, mounts("atk-vol")).with(own),
		creation("top level", "Links", "held", `{"Image":"busybox:local","Cmd":["sleep","100000"],"Links":["_REF_:peer"]}`, linked).with(own),
		creation("top level", "NetworkMode", "run", `{"Image":"busybox:local","Cmd":["sleep","100000"],"NetworkMode":"container:_REF_"}`, moded).with(own),
		creation("top level", "Binds", "vol", `{"Image":"busybox:local","Binds":["_REF_:/d"]}`, mounts("atk-vol")).with(own),
		creation("top level", "CgroupParent", "", `{"Image":"busybox:local","CgroupParent":"_SLICE_"}`, inBobsSlice).with(own),

		creation("name", "bob's", "", hosted(`"Binds":[]`), nil).with(fails("the name is taken")).with(func(a *attack) { a.target, a.status = "/containers/create?name=atk-run", 409 }),
		creation("name", "bob's short ID", "", hosted(`"Binds":[]`), func(w *world, a answer) bool { return idIn(a) != "" && w.inspect(w.id["run"][:12]).ID == idIn(a) }).with(refusedAs("looks like a container ID")).
			with(func(a *attack) { a.target = "/containers/create?name=_SHORT_" }),
		creation("name", "bob's short ID after another", "", hosted(`"Binds":[]`), func(w *world, a answer) bool { return idIn(a) != "" && w.inspect(w.id["run"][:12]).ID == idIn(a) }).with(own).
			with(func(a *attack) { a.target = "/containers/create?name=atk-first&name=_SHORT_" }).with(fails("the first counts")),
	}
}

// mounts wants a container that has a volume.
func mounts(name string) func(*world, answer) bool {
	return made(func(_ *world, c inspected) bool {
		for _, m := range c.Mounts {
			if m.Name == name {
				return true
			}
		}
		return false
	})
}

// linked wants a container that has a link to bob's.
func linked(w *world, a answer) bool {
	return made(func(_ *world, c inspected) bool {
		return strings.Contains(strings.Join(c.HostConfig.Links, " "), "/atk-held:")
	})(w, a)
}

// moded wants a container whose modes name something of bob's.
func moded(w *world, a answer) bool {
	return made(func(_ *world, c inspected) bool {
		modes := c.HostConfig.NetworkMode + " " + c.HostConfig.PidMode
		return strings.Contains(modes, "container:"+w.id["run"]) || strings.Contains(modes, "atk-")
	})(w, a)
}

// endpoint wants a container that is to join bob's network.
func endpoint(w *world, a answer) bool {
	return made(func(_ *world, c inspected) bool {
		_, ok := c.NetworkSettings.Networks["atk-net"]
		return ok
	})(w, a)
}

// onItsFiles wants a volume that is made of the files of bob's.
func onItsFiles(w *world, a answer) bool {
	return a.status == http.StatusCreated && strings.Contains(w.raw("GET", "/volumes", "").body, `"device":"`+w.words("_VOLUME_", ""))
}

func ownedByBob(w *world, a answer) bool {
	return a.status == http.StatusCreated && w.inspect(idIn(a)).Config.Labels["ds01.user"] == "bob"
}

func inBobsSlice(w *world, a answer) bool {
	return a.status == http.StatusCreated && strings.HasSuffix(w.inspect(idIn(a)).HostConfig.CgroupParent, "ds01-student-bob.slice")
}

// labelledBobs wants a thing to have been made that bears bob's name.
func labelledBobs(path string) func(*world, answer) bool {
	return func(w *world, _ answer) bool {
		return strings.Contains(w.raw("GET", path, "").body, `"ds01.user":"bob"`)
	}
}

// started starts, as the admin, what was made.
func (w *world) started(a answer) (c inspected, ok bool) {
	if a.status != http.StatusCreated {
		return c, false
	}
	if got := w.raw("POST", "/containers/"+idIn(a)+"/start", ""); got.status != http.StatusNoContent {
		w.t.Logf("it does not start: %d %s", got.status, got.body)
		return c, false
	}
	return w.inspect(idIn(a)), true
}

// joins wants a container that is in a namespace of bob's.
func joins(namespace string) func(*world, answer) bool {
	return func(w *world, a answer) bool {
		c, ok := w.started(a)
		return ok && namespaceOf(w, c.State.Pid, namespace) == namespaceOf(w, w.inspect(w.id["run"]).State.Pid, namespace)
	}
}

func namespaceOf(w *world, pid int, namespace string) string {
	if namespace == "cgroup" {
		return strings.ReplaceAll(cgroupOf(w.t, fmt.Sprint(pid)), w.id["run"], "")
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, namespace))
	if err != nil {
		w.t.Fatal(err)
	}
	return link
}

// inNetwork wants a container that is in bob's network.
func inNetwork(w *world, a answer) bool {
	c, ok := w.started(a)
	if !ok {
		return false
	}
	for _, n := range c.NetworkSettings.Networks {
		if n.NetworkID == w.id["net"] {
			return true
		}
	}
	return false
}

// leaksEnvironment wants a container that has the environment of bob's in its own.
func leaksEnvironment(w *world, a answer) bool {
	c, ok := w.started(a)
	if !ok {
		return false
	}
	// The process is the runtime's for a moment yet.
	eventually(w.t, "the container's own program runs", func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.State.Pid))
		return err == nil && strings.Contains(string(line), "docker-init")
	})
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.State.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.ContainsFunc(strings.Split(string(text), "\x00"), func(v string) bool { return strings.HasSuffix(v, "=atk-secret-env") })
}

// reads wants a container in which a file has a text.
func reads(path, text string) func(*world, answer) bool {
	return func(w *world, a answer) bool {
		if _, ok := w.started(a); !ok {
			return false
		}
		return strings.Contains(w.raw("GET", "/containers/"+idIn(a)+"/archive?path="+path, "").body, text)
	}
}
