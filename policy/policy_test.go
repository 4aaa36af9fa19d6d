package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
)

var (
	alice  = &Subject{User: "alice", UID: 1001}
	nobody = &Subject{}
	root   = &Subject{User: "root", Admin: true}
)

func TestAccessObject(t *testing.T) {
	const (
		protected = "Error: Container 'web' is protected infrastructure.\nAdmin access required. Contact system administrator."
		closed    = "Permission denied: this container has no owner label, and containers without an owner are closed here. Contact system administrator."
		opened    = "container 1234 has no owner label and unowned_containers is allow"
	)
	c := func(owner string, prot bool) Object {
		return Object{Kind: "container", ID: "1234", Ref: "web", Owner: owner, Protected: prot}
	}
	kind := func(kind, owner string) Object { return Object{Kind: kind, ID: "1234", Ref: "web", Owner: owner} }
	for _, r := range []struct {
		s       *Subject
		o       Object
		use     Use
		unowned Switch
		want    Verdict
	}{
		{alice, c("alice", false), Read, SwitchDeny, Verdict{Allow, "own-container", ""}},
		{alice, c("alice", false), Change, SwitchDeny, Verdict{Allow, "own-container", ""}},
		{alice, c("bob", false), Read, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to bob"}},
		{alice, c("bob", false), Change, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to bob"}},
		{alice, kind("volume", "bob"), Change, SwitchAllow, Verdict{Refuse, "own-volume", "Permission denied: this volume belongs to bob"}},
		{alice, kind("network", "bob"), Change, SwitchAllow, Verdict{Refuse, "own-network", "Permission denied: this network belongs to bob"}},
		{alice, kind("image", "bob"), Change, SwitchAllow, Verdict{Refuse, "own-image", "Permission denied: this image belongs to bob"}},
		{alice, kind("exec", "bob"), Change, SwitchAllow, Verdict{Refuse, "own-exec", "Permission denied: this exec belongs to bob"}},
		{alice, kind("exec", "alice"), Change, SwitchAllow, Verdict{Allow, "own-exec", ""}},
		// Names are compared whole and as NSS spells them.
		{alice, c("Alice", false), Read, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to Alice"}},
		{alice, c("alice2", false), Read, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to alice2"}},
		{alice, c("alic", false), Read, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to alic"}},
		{alice, c("alice ", false), Read, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to alice "}},

		{alice, c("", false), Read, SwitchAllow, Verdict{FailOpen, "unowned-container", opened}},
		{alice, c("", false), Change, SwitchAllow, Verdict{FailOpen, "unowned-container", opened}},
		{alice, c("", false), Read, SwitchDeny, Verdict{Refuse, "unowned-container", closed}},
		{alice, c("", false), Change, SwitchDeny, Verdict{Refuse, "unowned-container", closed}},
		{alice, c("", false), Change, Switch(7), Verdict{Refuse, "unowned-container", closed}},
		// A subject without a name owns nothing, the unowned least of all.
		{nobody, c("", false), Change, SwitchDeny, Verdict{Refuse, "unowned-container", closed}},
		{nobody, c("bob", false), Change, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to bob"}},

		{alice, c("alice", true), Read, SwitchDeny, Verdict{Allow, "own-container", ""}},
		{alice, c("alice", true), Change, SwitchAllow, Verdict{Refuse, "protected-container", protected}},
		{alice, c("alice", true), Use(0), SwitchAllow, Verdict{Refuse, "protected-container", protected}},
		{alice, c("bob", true), Read, SwitchAllow, Verdict{Refuse, "own-container", "Permission denied: this container belongs to bob"}},
		{alice, c("", true), Read, SwitchAllow, Verdict{FailOpen, "unowned-container", opened}},
		{alice, c("", true), Read, SwitchDeny, Verdict{Refuse, "unowned-container", closed}},
		{alice, c("", true), Change, SwitchAllow, Verdict{Refuse, "protected-container", protected}},

		{root, c("bob", false), Change, SwitchDeny, Verdict{Allow, "admin", ""}},
		{root, c("", false), Change, SwitchDeny, Verdict{Allow, "admin", ""}},
		{root, c("alice", true), Change, SwitchDeny, Verdict{Allow, "admin", ""}},
	} {
		if got := AccessObject(r.s, r.o, r.use, r.unowned); got != r.want {
			t.Errorf("%q, %+v, use %d, unowned %v:\n got %+v\nwant %+v", r.s.User, r.o, r.use, r.unowned, got, r.want)
		}
	}
}

func TestAdminsOnly(t *testing.T) {
	for _, r := range []struct {
		s    *Subject
		want Verdict
	}{
		{root, Verdict{Allow, "admin", ""}},
		{alice, Verdict{Refuse, "admins-only", "Permission denied: docker swarm is for admins only on this server. Contact system administrator."}},
		{nobody, Verdict{Refuse, "admins-only", "Permission denied: docker swarm is for admins only on this server. Contact system administrator."}},
	} {
		if got := AdminsOnly(r.s, "docker swarm"); got != r.want {
			t.Errorf("%q: got %+v, want %+v", r.s.User, got, r.want)
		}
	}
}

func TestUnknownRoute(t *testing.T) {
	refused := Verdict{Refuse, "unknown-route", "Permission denied: POST /x is not a request that this server knows. Contact system administrator."}
	for _, r := range []struct {
		s    *Subject
		sw   Switch
		want Verdict
	}{
		{alice, SwitchAllow, Verdict{FailOpen, "unknown-route", "no route is known for POST /x and unknown_routes is allow"}},
		{alice, SwitchDeny, refused},
		{alice, Switch(0), refused},
		{alice, Switch(7), refused},
		{root, SwitchDeny, Verdict{Allow, "admin", ""}},
		{root, SwitchAllow, Verdict{Allow, "admin", ""}},
	} {
		if got := UnknownRoute(r.s, "POST", "/x", r.sw); got != r.want {
			t.Errorf("%q, %v: got %+v, want %+v", r.s.User, r.sw, got, r.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	const none = "Permission denied: no rule allows this request. Contact system administrator."
	for _, r := range []struct {
		v       Verdict
		allowed bool
		message string
	}{
		{Verdict{}, false, none},
		{Verdict{Rule: "x"}, false, none},
		{Verdict{Outcome: Refuse, Reason: "no"}, false, "no"},
		{Verdict{Outcome: Allow}, true, none},
		{Verdict{Outcome: FailOpen, Reason: "cause"}, true, "cause"},
		{Verdict{Outcome: FailOpen + 1}, false, none},
		{Verdict{Outcome: 255}, false, none},
		{Pass(), true, none},
	} {
		if got := r.v.Allowed(); got != r.allowed {
			t.Errorf("%+v: allowed %v, want %v", r.v, got, r.allowed)
		}
		if got := r.v.Message(); got != r.message {
			t.Errorf("%+v: message %q, want %q", r.v, got, r.message)
		}
	}
}

func TestOwnerOf(t *testing.T) {
	for _, r := range []struct {
		labels map[string]string
		want   string
	}{
		{nil, ""},
		{map[string]string{}, ""},
		{map[string]string{"ds01.user": "alice"}, "alice"},
		{map[string]string{"aime.mlc.USER": "bob"}, "bob"},
		{map[string]string{"ds01.user": "alice", "aime.mlc.USER": "bob"}, "alice"},
		{map[string]string{"ds01.user": "", "aime.mlc.USER": "bob"}, "bob"},
		{map[string]string{"DS01.user": "alice", "aime.mlc.user": "bob", "user": "carol"}, ""},
		{map[string]string{"ds01.user": "alice@uni.example"}, "alice@uni.example"},
	} {
		if got := OwnerOf(r.labels); got != r.want {
			t.Errorf("%v: owner %q, want %q", r.labels, got, r.want)
		}
	}
}

func TestIsProtected(t *testing.T) {
	for _, r := range []struct {
		labels map[string]string
		want   bool
	}{
		{nil, false},
		{map[string]string{"ds01.protected": "true"}, true},
		{map[string]string{"ds01.protected": "false"}, false},
		{map[string]string{"ds01.protected": ""}, false},
		{map[string]string{"ds01.Protected": "true"}, false},
	} {
		if got := IsProtected(r.labels); got != r.want {
			t.Errorf("%v: protected %v, want %v", r.labels, got, r.want)
		}
	}
}

func TestNewName(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 5)
	for _, r := range []struct {
		name    string
		allowed bool
	}{
		{"", true},
		{"web", true},
		{"deadbeef", true},
		{hex[:11], true},
		{hex[:12], false},
		{hex[:13], false},
		{hex[:40], false},
		{hex[:63], false},
		{hex[:64], false},
		{hex[:65], true},
		{"/" + hex[:11], true},
		{"/" + hex[:12], false},
		{"/" + hex[:64], false},
		{"/" + hex[:65], true},
		{"ABCDEFABCDEF", false},
		{"aBcDeF012345", false},
		{"000000000000", false},
		{hex[:11] + "g", true},
		{hex[:11] + "G", true},
		{hex[:11] + "_", true},
		{"g" + hex[:11], true},
		{hex[:63] + "-", true},
		{"@" + hex[:12], true},
		{"`" + hex[:12], true},
		{":" + hex[:12], true},
		{"web-" + hex[:12], true},
	} {
		got := NewName(r.name)
		if got.Allowed() != r.allowed || got.Rule != "container-name" {
			t.Errorf("%q: got %+v, want allowed %v", r.name, got, r.allowed)
		}
		if bare := strings.TrimPrefix(r.name, "/"); !r.allowed && !strings.Contains(got.Reason, fmt.Sprintf("%q", bare)) {
			t.Errorf("%q: the reason does not name it: %s", r.name, got.Reason)
		}
	}
}

func TestParseMode(t *testing.T) {
	for _, r := range []struct {
		in   string
		want Mode
		ok   bool
	}{
		{"full", ModeFull, true},
		{"monitoring", ModeMonitoring, true},
		{"disabled", ModeDisabled, true},
		{"", ModeFull, false},
		{"Full", ModeFull, false},
		{"DISABLED", ModeFull, false},
		{"disabled ", ModeFull, false},
		{"off", ModeFull, false},
		{"mode(1)", ModeFull, false},
	} {
		got, err := ParseMode(r.in)
		if got != r.want || (err == nil) != r.ok {
			t.Errorf("%q: got %v, %v; want %v, ok %v", r.in, got, err, r.want, r.ok)
		}
		if r.ok && got.String() != r.in {
			t.Errorf("%q is written back as %q", r.in, got)
		}
	}
	if got := Mode(9).String(); got != "mode(9)" {
		t.Errorf("Mode(9) is written as %q", got)
	}
}

func TestParseSwitch(t *testing.T) {
	for _, r := range []struct {
		in   string
		want Switch
		ok   bool
	}{
		{"allow", SwitchAllow, true},
		{"deny", SwitchDeny, true},
		{"", SwitchDeny, false},
		{"Allow", SwitchDeny, false},
		{"allow\n", SwitchDeny, false},
		{"true", SwitchDeny, false},
	} {
		got, err := ParseSwitch(r.in)
		if got != r.want || (err == nil) != r.ok {
			t.Errorf("%q: got %v, %v; want %v, ok %v", r.in, got, err, r.want, r.ok)
		}
		if r.ok && got.String() != r.in {
			t.Errorf("%q is written back as %q", r.in, got)
		}
	}
}

// Each row gives one field of HostConfig as it arrives, where and what it refers
// to, and what it is once "ID" stands in the place.
func TestContainerReferences(t *testing.T) {
	for _, r := range []struct{ host, field, ref, after string }{
		{`{"NetworkMode":"container:web"}`, "--network", "web", `{"NetworkMode":"container:ID"}`},
		{`{"NetworkMode":"container:"}`, "--network", "", `{"NetworkMode":"container:ID"}`},
		{`{"NetworkMode":"container:a:b"}`, "--network", "a:b", `{"NetworkMode":"container:ID"}`},
		{`{"networkmode":"container:web"}`, "--network", "web", `{"NetworkMode":"container:ID"}`},
		{`{"PidMode":"container:web"}`, "--pid", "web", `{"PidMode":"container:ID"}`},
		{`{"IpcMode":"container:web"}`, "--ipc", "web", `{"IpcMode":"container:ID"}`},
		{`{"Cgroup":"container:web"}`, "Cgroup", "web", `{"Cgroup":"container:ID"}`},
		{`{"UTSMode":"container:web"}`, "--uts", "web", `{"UTSMode":"container:ID"}`},
		{`{"UsernsMode":"container:web"}`, "--userns", "web", `{"UsernsMode":"container:ID"}`},
		{`{"CgroupnsMode":"container:web"}`, "--cgroupns", "web", `{"CgroupnsMode":"container:ID"}`},

		{`{"VolumesFrom":["web"]}`, "--volumes-from", "web", `{"VolumesFrom":["ID"]}`},
		{`{"VolumesFrom":["web:ro"]}`, "--volumes-from", "web", `{"VolumesFrom":["ID:ro"]}`},
		{`{"VolumesFrom":["web:rw,z"]}`, "--volumes-from", "web", `{"VolumesFrom":["ID:rw,z"]}`},
		{`{"VolumesFrom":["web:"]}`, "--volumes-from", "web", `{"VolumesFrom":["ID:"]}`},
		{`{"VolumesFrom":["/web:ro"]}`, "--volumes-from", "/web", `{"VolumesFrom":["ID:ro"]}`},

		{`{"Links":["web"]}`, "--link", "web", `{"Links":["ID:web"]}`},
		{`{"Links":["web:db"]}`, "--link", "web", `{"Links":["ID:db"]}`},
		{`{"Links":["/web"]}`, "--link", "/web", `{"Links":["ID:web"]}`},
		{`{"Links":["/web:/parent/db"]}`, "--link", "/web", `{"Links":["ID:db"]}`},
		{`{"Links":["/web:/db"]}`, "--link", "/web", `{"Links":["ID:db"]}`},
	} {
		var req container.CreateRequest
		if err := json.Unmarshal([]byte(`{"HostConfig":`+r.host+`}`), &req); err != nil {
			t.Fatal(err)
		}
		refs := ContainerReferences(&req)
		if len(refs) != 1 || refs[0].Field != r.field || refs[0].Ref != r.ref {
			t.Errorf("%s: got %+v, want one of %s to %q", r.host, refs, r.field, r.ref)
			continue
		}
		refs[0].Set("ID")
		var want container.HostConfig
		if err := json.Unmarshal([]byte(r.after), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*req.HostConfig, want) {
			got, _ := json.Marshal(req.HostConfig)
			t.Errorf("%s: became %s, want %s", r.host, got, r.after)
		}
	}
}

func TestContainerReferencesNone(t *testing.T) {
	for _, body := range []string{
		`{}`,
		`{"HostConfig":null}`,
		`{"HostConfig":{}}`,
		`{"HostConfig":{"NetworkMode":"host","PidMode":"host","IpcMode":"shareable","UTSMode":"host","UsernsMode":"host","CgroupnsMode":"private"}}`,
		`{"HostConfig":{"NetworkMode":"container"}}`,
		`{"HostConfig":{"NetworkMode":"Container:web"}}`,
		`{"HostConfig":{"VolumesFrom":[],"Links":null}}`,
	} {
		var req container.CreateRequest
		if err := json.Unmarshal([]byte(body), &req); err != nil {
			t.Fatal(err)
		}
		if refs := ContainerReferences(&req); len(refs) != 0 {
			t.Errorf("%s: got %+v, want none", body, refs)
		}
	}
}

func TestContainerReferencesTogether(t *testing.T) {
	hc := &container.HostConfig{
		NetworkMode: "container:n", PidMode: "container:p", IpcMode: "container:i", Cgroup: "container:c",
		UTSMode: "container:t", UsernsMode: "container:u", CgroupnsMode: "container:g",
		VolumesFrom: []string{"v1", "v2:ro"}, Links: []string{"l1", "/l2:/me/two"},
	}
	refs := ContainerReferences(&container.CreateRequest{HostConfig: hc})
	var order []string
	for i, ref := range refs {
		order = append(order, ref.Field+" "+ref.Ref)
		ref.Set(fmt.Sprintf("id%d", i))
	}
	wantOrder := []string{
		"--network n", "--pid p", "--ipc i", "Cgroup c", "--uts t", "--userns u", "--cgroupns g",
		"--volumes-from v1", "--volumes-from v2", "--link l1", "--link /l2",
	}
	if !reflect.DeepEqual(order, wantOrder) {
		t.Errorf("order:\n got %q\nwant %q", order, wantOrder)
	}
	want := container.HostConfig{
		NetworkMode: "container:id0", PidMode: "container:id1", IpcMode: "container:id2", Cgroup: "container:id3",
		UTSMode: "container:id4", UsernsMode: "container:id5", CgroupnsMode: "container:id6",
		VolumesFrom: []string{"id7", "id8:ro"}, Links: []string{"id9:l1", "id10:two"},
	}
	if !reflect.DeepEqual(*hc, want) {
		t.Errorf("written back:\n got %+v\nwant %+v", *hc, want)
	}
}

// Whatever a client can write into a create request to name another container
// must be listed; the fields are those of Docker's type that know "container:".
func TestContainerReferencesMissNoMode(t *testing.T) {
	var hc container.HostConfig
	fields := reflect.ValueOf(&hc).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		// Isolation, ContainerIDFile, VolumeDriver and Runtime are texts too and name
		// no container.
		if f := fields.Field(i); f.Kind() == reflect.String && (strings.HasSuffix(name, "Mode") || name == "Cgroup") {
			f.SetString("container:" + name)
		}
	}
	for _, ref := range ContainerReferences(&container.CreateRequest{HostConfig: &hc}) {
		ref.Set("ID")
	}
	for i := range fields.NumField() {
		if f := fields.Field(i); f.Kind() == reflect.String && f.String() != "" && f.String() != "container:ID" {
			t.Errorf("%s still reads %q", fields.Type().Field(i).Name, f.String())
		}
	}
}

var noon = time.Date(2026, 1, 31, 12, 0, 0, 123456789, time.FixedZone("", 2*60*60))

func TestStampContainerLabels(t *testing.T) {
	for _, r := range []struct {
		name       string
		from, want map[string]string
	}{
		{"none", nil, map[string]string{"ds01.container_type": "docker"}},
		{
			"kept",
			map[string]string{"a": "b", "ds01.mine": "x", "ds01.username": "y", "maintainer": "z"},
			map[string]string{"a": "b", "ds01.mine": "x", "ds01.username": "y", "maintainer": "z", "ds01.container_type": "docker"},
		},
		{
			"reserved ones dropped",
			map[string]string{
				"ds01.user": "bob", "ds01.managed": "false", "ds01.container_type": "infra", "ds01.created_at": "never",
				"ds01.gpu_slot": "GPU-1", "ds01.gpu_ephemeral": "true", "ds01.protected": "true",
			},
			map[string]string{"ds01.container_type": "docker"},
		},
		{
			"an older owner label does not win",
			map[string]string{"aime.mlc.USER": "bob"},
			map[string]string{"aime.mlc.USER": "bob", "ds01.container_type": "docker"},
		},
	} {
		before := maps.Clone(r.from)
		req := &container.CreateRequest{Config: &container.Config{Image: "busybox", Labels: r.from}}
		StampContainer(req, alice, "ds01-student-alice.slice", noon, nil)
		want := maps.Clone(r.want)
		maps.Copy(want, map[string]string{
			"ds01.user": "alice", "ds01.managed": "true", "ds01.created_at": "2026-01-31T12:00:00+02:00",
			// Said even where nobody asked, since an image could say otherwise.
			"ds01.protected": "false",
		})
		if !maps.Equal(req.Config.Labels, want) {
			t.Errorf("%s:\n got %v\nwant %v", r.name, req.Config.Labels, want)
		}
		if !maps.Equal(r.from, before) {
			t.Errorf("%s: the caller's own map became %v", r.name, r.from)
		}
		if OwnerOf(req.Config.Labels) != "alice" || IsProtected(req.Config.Labels) {
			t.Errorf("%s: owner %q, protected %v", r.name, OwnerOf(req.Config.Labels), IsProtected(req.Config.Labels))
		}
		if req.Config.Image != "busybox" {
			t.Errorf("%s: image %q", r.name, req.Config.Image)
		}
	}
}

func TestStampContainerParent(t *testing.T) {
	for _, r := range []struct {
		name string
		req  *container.CreateRequest
	}{
		{"nothing", &container.CreateRequest{}},
		{"no HostConfig", &container.CreateRequest{Config: &container.Config{}}},
		{"no Config", &container.CreateRequest{HostConfig: &container.HostConfig{}}},
		{"another's slice", &container.CreateRequest{HostConfig: &container.HostConfig{Resources: container.Resources{CgroupParent: "ds01-student-bob.slice"}}}},
		{"the root", &container.CreateRequest{HostConfig: &container.HostConfig{Resources: container.Resources{CgroupParent: "/"}}}},
	} {
		StampContainer(r.req, alice, "ds01-student-alice.slice", noon, nil)
		if r.req.HostConfig == nil || r.req.HostConfig.CgroupParent != "ds01-student-alice.slice" {
			t.Errorf("%s: host config %+v", r.name, r.req.HostConfig)
		}
		if r.req.Config == nil || r.req.Config.Labels["ds01.user"] != "alice" {
			t.Errorf("%s: config %+v", r.name, r.req.Config)
		}
	}
}

func TestContainerType(t *testing.T) {
	for _, r := range []struct {
		labels map[string]string
		want   string
	}{
		{nil, "docker"},
		{map[string]string{"a": "b"}, "docker"},
		{map[string]string{"ds01.interface": "orchestration"}, "orchestration"},
		{map[string]string{"ds01.interface": ""}, "docker"},
		{map[string]string{"ds01.interface": "", "com.docker.compose.project": "p"}, "compose"},
		{map[string]string{"devcontainer.local_folder": "/x"}, "devcontainer"},
		{map[string]string{"devcontainer.metadata": ""}, "devcontainer"},
		{map[string]string{"devcontainer": "x"}, "docker"},
		{map[string]string{"devcontainers.x": "x"}, "docker"},
		{map[string]string{"com.docker.compose": ""}, "compose"},
		{map[string]string{"com.docker.compose.service": "db"}, "compose"},
		{map[string]string{"com.docker.composer": "x"}, "compose"},
		{map[string]string{"com.docker.comp": "x"}, "docker"},
		{map[string]string{"x.devcontainer.a": "", "x.com.docker.compose": ""}, "docker"},
		{map[string]string{"devcontainer.a": "", "com.docker.compose.project": "p", "com.docker.compose.b": "", "z": ""}, "devcontainer"},
		{map[string]string{"ds01.interface": "api", "devcontainer.a": "", "com.docker.compose.project": "p"}, "api"},
	} {
		if got := ContainerType(r.labels); got != r.want {
			t.Errorf("%v: %q, want %q", r.labels, got, r.want)
		}
		req := &container.CreateRequest{Config: &container.Config{Labels: r.labels}}
		StampContainer(req, alice, "", noon, nil)
		if got := req.Config.Labels["ds01.container_type"]; got != r.want {
			t.Errorf("%v: stamped %q, want %q", r.labels, got, r.want)
		}
	}
}
