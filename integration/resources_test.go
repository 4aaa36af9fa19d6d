package integration

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// refused runs the docker CLI as a person and wants it to fail with text.
func refused(t *testing.T, who lab.Person, text string, args ...string) {
	t.Helper()
	out, err := theProxy.Docker(limit(t), who, args...)
	if err == nil || !strings.Contains(out, text) {
		t.Errorf("%s: docker %s: %v: %q, want %q", who.Name, strings.Join(args, " "), err, out, text)
	}
}

// tidy removes containers, networks and volumes by name at the end, as the admin.
func tidy(t *testing.T, names ...string) {
	t.Helper()
	t.Cleanup(func() {
		for _, kind := range [][]string{{"rm", "-f", "-v"}, {"network", "rm"}, {"volume", "rm", "-f"}} {
			for _, name := range names {
				_, _ = theEngine.Docker(context.Background(), append(kind, name)...)
			}
		}
	})
}

// TestVolumesBelongToSomebody attacks bob's volume as alice, in every way that a
// volume can be said.
func TestVolumesBelongToSomebody(t *testing.T) {
	tidy(t, "vol-c", "vol-x", "vol-bob", "vol-new", "vol-alice")
	as(t, lab.Bob, "volume", "create", "vol-bob")
	as(t, lab.Bob, "run", "--rm", "-v", "vol-bob:/d", lab.Image, "sh", "-c", "echo secret >/d/f")
	const text = "Permission denied: this volume belongs to bob"
	for _, args := range [][]string{
		{"volume", "create", "vol-bob"},
		{"volume", "inspect", "vol-bob"},
		{"volume", "rm", "vol-bob"},
		{"volume", "rm", "-f", "vol-bob"},
		{"run", "--rm", "-v", "vol-bob:/d", lab.Image, "cat", "/d/f"},
		{"run", "--rm", "-v", "vol-bob:/d:ro", lab.Image, "cat", "/d/f"},
		{"run", "--rm", "--mount", "source=vol-bob,target=/d", lab.Image, "cat", "/d/f"},
		{"run", "--rm", "--mount", "type=volume,source=vol-bob,target=/d,readonly", lab.Image, "cat", "/d/f"},
		{"create", "-v", "vol-new:/a", "-v", "vol-bob:/d", lab.Image},
	} {
		refused(t, lab.Alice, text, args...)
	}
	for _, body := range []string{
		`{"Image":"busybox:local","HostConfig":{"binds":["vol-bob:/d"]}}`,
		`{"Image":"busybox:local","HostConfig":{"Binds":["x:/x"],"BINDS":["vol-bob:/d"]}}`,
		`{"Image":"busybox:local","HostConfig":{"Mounts":[{"type":"volume","source":"vol-bob","target":"/d"}]}}`,
	} {
		if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/containers/create?name=vol-x", body); got.status != http.StatusForbidden || !strings.Contains(got.body, text) {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	// The host, by the local driver's options.
	for _, args := range [][]string{
		{"volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", "device=/etc", "vol-x"},
		{"run", "--rm", "--mount", "type=volume,target=/d,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/etc", lab.Image, "cat", "/d/shadow"},
		{"run", "--rm", "--mount", "type=volume,source=vol-x,target=/d,volume-driver=local,volume-opt=device=/etc", lab.Image, "ls", "/d"},
	} {
		refused(t, lab.Alice, "options of the volume driver", args...)
	}
	refused(t, lab.Alice, "volume driver", "volume", "create", "-d", "evil", "vol-x")
	refused(t, lab.Alice, "volume driver", "run", "--volume-driver", "evil", "-v", "vol-x:/d", lab.Image)

	if out := as(t, lab.Alice, "volume", "ls", "-q"); strings.Contains(out, "vol-bob") {
		t.Errorf("alice lists %s", out)
	}
	as(t, lab.Alice, "volume", "prune", "-f")
	for _, body := range []string{"", "{}"} {
		ask(t, theProxy.Socket(lab.Alice), "POST", `/volumes/prune?filters=%7B%22label%22%3A%5B%22ds01.user%3Dbob%22%5D%7D`, body)
		ask(t, theProxy.Socket(lab.Alice), "POST", `/volumes/prune?filters=%7B%22all%22%3A%5B%22true%22%5D%7D`, body)
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "GET", "/system/df", ""); strings.Contains(got.body, "vol-bob") {
		t.Errorf("disk usage shows bob's volume: %s", got.body)
	}
	if out := as(t, lab.Bob, "run", "--rm", "-v", "vol-bob:/d", lab.Image, "cat", "/d/f"); out != "secret" {
		t.Errorf("bob's volume has %q", out)
	}
	if got := admin(t, "volume", "inspect", "vol-bob", "--format", `{{index .Labels "ds01.user"}}`); got != "bob" {
		t.Errorf("vol-bob belongs to %q", got)
	}
}

// TestNewAndAnonymousVolumesAreLabelled makes volumes in every way in which the
// Engine makes them by itself.
func TestNewAndAnonymousVolumesAreLabelled(t *testing.T) {
	tidy(t, "anon", "anon-named", "anon-image")
	admin(t, "create", "--name", "anon-image", lab.Image)
	admin(t, "commit", "-c", "VOLUME /declared", "anon-image", "anon:1")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rmi", "-f", "anon:1") })
	as(t, lab.Alice, "run", "-d", "--name", "anon", "-v", "anon-named:/named", "-v", "/bare", "--mount", "type=volume,target=/mounted", "--tmpfs", "/tmpfs",
		"anon:1", "sleep", "1000")
	var mounts []struct{ Type, Name, Destination string }
	if err := json.Unmarshal([]byte(admin(t, "inspect", "anon", "--format", "{{json .Mounts}}")), &mounts); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]string)
	for _, m := range mounts {
		if m.Type == "volume" {
			seen[m.Destination] = m.Name
			if got := admin(t, "volume", "inspect", m.Name, "--format", `{{index .Labels "ds01.user"}}`); got != "alice" {
				t.Errorf("the volume at %s belongs to %q", m.Destination, got)
			}
		}
	}
	for _, at := range []string{"/named", "/bare", "/mounted", "/declared"} {
		if seen[at] == "" {
			t.Errorf("no volume at %s: %v", at, mounts)
		}
	}
	// What comes from another container stays what it is, and the rest is labelled.
	tidy(t, "anon-from")
	admin(t, "create", "--name", "anon-image-2", lab.Image)
	tidy(t, "anon-image-2")
	admin(t, "commit", "-c", "VOLUME /declared /declared-too", "anon-image-2", "anon:2")
	untag(t, "anon:2")
	as(t, lab.Alice, "create", "--name", "anon-from", "--volumes-from", "anon", "anon:2")
	var from []struct{ Type, Name, Destination string }
	if err := json.Unmarshal([]byte(admin(t, "inspect", "anon-from", "--format", "{{json .Mounts}}")), &from); err != nil {
		t.Fatal(err)
	}
	for _, m := range from {
		if m.Destination == "/declared" && m.Name != seen["/declared"] {
			t.Errorf("/declared is not the other container's: %s", m.Name)
		}
		if got := admin(t, "volume", "inspect", m.Name, "--format", `{{index .Labels "ds01.user"}}`); got != "alice" {
			t.Errorf("the volume at %s belongs to %q", m.Destination, got)
		}
	}
	if len(from) != len(seen)+1 {
		t.Errorf("anon-from has the mounts %v", from)
	}
	as(t, lab.Alice, "rm", "-f", "-v", "anon-from")
	as(t, lab.Alice, "rm", "-f", "-v", "anon")
	for at, name := range seen {
		_, err := theEngine.Docker(limit(t), "volume", "inspect", name)
		if gone := err != nil; gone == (at == "/named") {
			t.Errorf("after rm -v the volume at %s is gone: %t", at, gone)
		}
	}
}

// TestNetworksBelongToSomebody attacks bob's network as alice.
func TestNetworksBelongToSomebody(t *testing.T) {
	tidy(t, "net-c-bob", "net-c-alice", "net-x", "net-bob")
	id := as(t, lab.Bob, "network", "create", "net-bob")
	as(t, lab.Bob, "run", "-d", "--init", "--name", "net-c-bob", "--network", "net-bob", lab.Image, "sleep", "1000")
	as(t, lab.Alice, "run", "-d", "--init", "--name", "net-c-alice", lab.Image, "sleep", "1000")
	const text = "Permission denied: this network belongs to bob"
	for _, ref := range []string{"net-bob", id, id[:12], id[:6]} {
		for _, args := range [][]string{
			{"network", "rm", ref},
			{"network", "connect", ref, "net-c-alice"},
			{"run", "--rm", "--network", ref, lab.Image, "true"},
			{"run", "--rm", "--network", "name=" + ref + ",alias=x", lab.Image, "true"},
		} {
			refused(t, lab.Alice, text, args...)
		}
		want := text
		if ref == "net-bob" {
			// Every user has names of their own, and this one is free to her.
			want = "network net-bob not found"
		}
		refused(t, lab.Alice, want, "network", "inspect", ref)
	}
	refused(t, lab.Alice, "this container belongs to bob", "network", "disconnect", "-f", "bridge", "net-c-bob")
	refused(t, lab.Alice, "this container belongs to bob", "network", "connect", "bridge", "net-c-bob")
	for _, body := range []string{
		`{"Image":"busybox:local","NetworkingConfig":{"EndpointsConfig":{"net-bob":{}}}}`,
		`{"Image":"busybox:local","HostConfig":{"NetworkMode":"bridge"},"networkingconfig":{"endpointsconfig":{"` + id + `":{}}}}`,
		`{"Image":"busybox:local","HostConfig":{"NetworkMode":"net-bob"},"NetworkingConfig":{"EndpointsConfig":{"bridge":{}}}}`,
	} {
		if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/containers/create?name=net-x", body); got.status != http.StatusForbidden || !strings.Contains(got.body, text) {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	// Another network's ID inside the settings of an allowed one.
	got := ask(t, theProxy.Socket(lab.Alice), "POST", "/containers/create?name=net-x", `{"Image":"busybox:local","Cmd":["sleep","1000"],"NetworkingConfig":{"EndpointsConfig":{"bridge":{"NetworkID":"`+id+`"}}}}`)
	if got.status != http.StatusCreated {
		t.Fatal(got)
	}
	as(t, lab.Alice, "start", "net-x")
	if nets := admin(t, "inspect", "net-x", "--format", "{{json .NetworkSettings.Networks}}"); strings.Contains(nets, id) {
		t.Errorf("alice's container is in bob's network: %s", nets)
	}
	oldest, _ := engineVersions(t)
	for _, path := range []string{"/networks", "/networks/", "/v" + oldest + "/networks", `/networks?filters=%7B%22name%22%3A%5B%22net-bob%22%5D%7D`} {
		if got := ask(t, theProxy.Socket(lab.Alice), "GET", path, ""); got.status != 200 || strings.Contains(got.body, "net-bob") || strings.Contains(got.body, id) {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if out := as(t, lab.Alice, "network", "ls", "--format", "{{.Name}}"); out != "bridge\nhost\nnone" {
		t.Errorf("alice lists %q", out)
	}
	as(t, lab.Alice, "network", "prune", "-f")
	as(t, lab.Bob, "network", "inspect", "net-bob")

	// What is not to be made.
	for _, c := range []struct {
		text string
		args []string
	}{
		{"network driver", []string{"-d", "macvlan", "-o", "parent=lo", "net-x"}},
		{"cannot be chosen here", []string{"--subnet", "8.8.8.0/24", "net-x"}},
		{"network option", []string{"-o", "com.docker.network.bridge.name=docker0", "net-x"}},
		{"network option", []string{"-o", "com.docker.network.bridge.host_binding_ipv4=0.0.0.0", "net-x"}},
		{"only local networks", []string{"--config-only", "net-x"}},
		{"IPAM", []string{"--ipam-driver", "evil", "net-x"}},
		{"looks like a container ID", []string{"deadbeefcafe"}},
	} {
		refused(t, lab.Alice, c.text, append([]string{"network", "create"}, c.args...)...)
	}
}

// TestTwoUsersMayHaveNetworksOfOneName gives both a network app_default.
func TestTwoUsersMayHaveNetworksOfOneName(t *testing.T) {
	people := []lab.Person{lab.Alice, lab.Bob}
	var ids []string
	for _, who := range people {
		ids = append(ids, as(t, who, "network", "create", "app_default"))
	}
	tidy(t, append(ids, "same-alice", "same-bob", "same-peer-alice", "same-peer-bob")...)
	for i, who := range people {
		refused(t, who, "already exists", "network", "create", "app_default")
		as(t, who, "run", "-d", "--init", "--name", "same-"+who.Name, "--network", "app_default", "--network-alias", "db", lab.Image, "sleep", "1000")
		if got := admin(t, "inspect", "same-"+who.Name, "--format", `{{range .NetworkSettings.Networks}}{{.NetworkID}} {{end}}`); got != ids[i] {
			t.Errorf("%s's container is in %s, want %s", who.Name, got, ids[i])
		}
		if got := as(t, who, "inspect", "same-"+who.Name, "--format", `{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}`); got != "app_default" {
			t.Errorf("%s's container shows the networks %q", who.Name, got)
		}
		if got := as(t, who, "network", "inspect", "app_default", "--format", `{{.Id}} {{len .Containers}}`); got != ids[i]+" 1" {
			t.Errorf("%s inspects %s", who.Name, got)
		}
		own := as(t, who, "run", "--rm", "--network", "app_default", lab.Image, "nslookup", "db")
		address := admin(t, "inspect", "same-"+who.Name, "--format", `{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}`)
		if !strings.Contains(own, address) {
			t.Errorf("%s's db is not at %s:\n%s", who.Name, address, own)
		}
	}
	for _, who := range people {
		as(t, who, "rm", "-f", "same-"+who.Name)
		as(t, who, "network", "rm", "app_default")
	}
}

// TestTheirOwnEvents wants network and volume events of one's own, and no others.
func TestTheirOwnEvents(t *testing.T) {
	tidy(t, "evn-alice", "evn-bob", "evv-alice", "evv-bob")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := theProxy.Command(ctx, lab.Alice, "docker", "events", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{.Actor.ID}}")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	time.Sleep(time.Second)
	for _, who := range []lab.Person{lab.Bob, lab.Alice} {
		as(t, who, "network", "create", "evn-"+who.Name)
		as(t, who, "volume", "create", "evv-"+who.Name)
		as(t, who, "volume", "rm", "evv-"+who.Name)
		as(t, who, "network", "rm", "evn-"+who.Name)
	}
	var seen strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "network destroy evn-alice") {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %s", err, seen.String())
		}
	}
	for _, want := range []string{"network create evn-alice", "volume create", "volume destroy"} {
		if !strings.Contains(seen.String(), want) {
			t.Errorf("no %q in:\n%s", want, seen.String())
		}
	}
	if strings.Contains(seen.String(), "bob") {
		t.Errorf("bob's events:\n%s", seen.String())
	}
}

// TestOneNameTwoUsers lets two users ask for one volume name at the same time,
// over and over: it ends with one owner, and the other mounts nothing.
func TestOneNameTwoUsers(t *testing.T) {
	people := []lab.Person{lab.Alice, lab.Bob}
	tidy(t, "vrace-alice", "vrace-bob", "vrace")
	var both, rounds atomic.Int64
	for began := time.Now(); time.Since(began) < raceTime; rounds.Add(1) {
		var wg sync.WaitGroup
		var won atomic.Int64
		for _, who := range people {
			wg.Add(2)
			go func() {
				defer wg.Done()
				got := ask(t, theProxy.Socket(who), "POST", "/containers/create?name=vrace-"+who.Name, `{"Image":"busybox:local","HostConfig":{"Binds":["vrace:/d"]}}`)
				if got.status == http.StatusCreated {
					won.Add(1)
				}
			}()
			go func() {
				defer wg.Done()
				ask(t, theProxy.Socket(who), "DELETE", "/volumes/vrace", "")
			}()
		}
		wg.Wait()
		if won.Load() > 1 {
			both.Add(1)
		}
		for _, who := range people {
			owner, _ := theEngine.Docker(limit(t), "inspect", "vrace-"+who.Name, "--format", `{{range .Mounts}}{{.Name}}{{end}}`)
			if strings.TrimSpace(owner) == "vrace" {
				if got := admin(t, "volume", "inspect", "vrace", "--format", `{{index .Labels "ds01.user"}}`); got != who.Name {
					t.Fatalf("round %d: %s's container mounts %s's volume", rounds.Load(), who.Name, got)
				}
			}
			ask(t, theProxy.Socket(who), "DELETE", "/containers/vrace-"+who.Name, "")
		}
		for _, who := range people {
			ask(t, theProxy.Socket(who), "DELETE", "/volumes/vrace", "")
		}
	}
	if both.Load() > 0 {
		t.Errorf("both got the volume in %d of %d rounds", both.Load(), rounds.Load())
	}
	if rounds.Load() < 20 {
		t.Errorf("only %d rounds", rounds.Load())
	}
}

// TestSystemAnswersAreOnesOwn looks at what every client reads at its start.
func TestSystemAnswersAreOnesOwn(t *testing.T) {
	container(t, lab.Bob, "sys-bob")
	container(t, lab.Alice, "sys-alice")
	as(t, lab.Alice, "create", "--name", "sys-alice-2", lab.Image)
	tidy(t, "sys-alice-2")
	if got := as(t, lab.Alice, "info", "--format", "{{.Containers}} {{.ContainersRunning}} {{.ContainersStopped}} {{.Swarm.LocalNodeState}}"); got != "2 1 1 inactive" {
		t.Errorf("info: %s", got)
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "GET", "/plugins", ""); got.status != 200 || strings.TrimSpace(got.body) != "[]" {
		t.Errorf("plugins: %v", got)
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "GET", "/swarm", ""); got.status != 503 || !strings.Contains(got.body, "not a swarm manager") {
		t.Errorf("swarm: %v", got)
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/build/prune?all=1", ""); got.status != 200 || !strings.Contains(got.body, `"SpaceReclaimed":0`) {
		t.Errorf("build prune: %v", got)
	}
	for _, v := range []struct{ method, path string }{
		{"POST", "/swarm/init"}, {"POST", "/swarm/leave"}, {"GET", "/services"}, {"GET", "/nodes"}, {"GET", "/secrets"}, {"POST", "/plugins/pull?remote=x"},
		{"GET", "/debug/pprof/"}, {"GET", "/debug/vars"}, {"PUT", "/volumes/x"},
	} {
		if got := ask(t, theProxy.Socket(lab.Alice), v.method, v.path, ""); got.status != 403 || !strings.Contains(got.body, "for admins only") {
			t.Errorf("%s %s: %d %s", v.method, v.path, got.status, got.body)
		}
	}
	// A prune with a filter removes only what has the label.
	as(t, lab.Alice, "create", "--name", "sys-keep", "--label", "keep=1", lab.Image)
	tidy(t, "sys-keep")
	as(t, lab.Alice, "container", "prune", "-f", "--filter", "label=nosuch")
	as(t, lab.Alice, "inspect", "sys-keep")
	as(t, lab.Alice, "container", "prune", "-f")
	refused(t, lab.Alice, "No such", "inspect", "sys-keep")
	as(t, lab.Bob, "inspect", "sys-bob")
}

// TestTwoUsersRunOneComposeFile runs the same project for both at once.
func TestTwoUsersRunOneComposeFile(t *testing.T) {
	const file = `version: "2.4"
services:
  web:
    image: busybox:local
    command: sleep 1000
    init: true
    depends_on: [db]
    volumes: ["data:/data"]
  db:
    image: busybox:local
    command: sleep 1000
    init: true
networks:
  default: {}
volumes:
  data: {}
`
	var wg sync.WaitGroup
	for _, who := range []lab.Person{lab.Alice, lab.Bob} {
		dir := filepath.Join(theProxy.Home(who), "proj-"+who.Name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		compose := func(args ...string) (string, error) {
			// Container and volume names are one namespace; the network's name is the same.
			cmd := theProxy.Command(limit(t), who, "docker-compose", append([]string{"-p", "proj" + who.Name}, args...)...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for _, step := range []struct{ args, want string }{
				{"up -d", ""}, {"ps -q", ""}, {"exec -T web nslookup db", "Address"}, {"exec -T web sh -c hostname>/data/f;cat</data/f", ""},
				{"up -d --scale db=2", ""}, {"logs", ""}, {"down -v", ""},
			} {
				if out, err := compose(strings.Fields(step.args)...); err != nil || !strings.Contains(out, step.want) {
					t.Errorf("%s: docker-compose %s: %v: %s", who.Name, step.args, err, out)
				}
			}
		}()
	}
	wg.Wait()
	if out := admin(t, "ps", "-aq", "--filter", "label=com.docker.compose.project"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

// TestBuildsAreTheirOwners looks at what a classic build leaves and where its
// steps run.
func TestBuildsAreTheirOwners(t *testing.T) {
	tidy(t, "build-c", "build-bob")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rmi", "-f", "build-alice:1", "build-forged:1") })
	container(t, lab.Bob, "build-bob")
	build := func(flags string) string {
		t.Helper()
		return shell(t, &lab.Alice, `printf 'FROM busybox:local\nRUN cat /proc/self/cgroup > /cgroup\nLABEL ds01.user=bob mine=1\n' >Dockerfile; docker build `+flags+` -q -t build-alice:1 . 2>&1 | tail -1; docker run --rm build-alice:1 cat /cgroup; docker image inspect build-alice:1 --format '{{json .Config.Labels}}'`)
	}
	out := build("")
	for _, want := range []string{"ds01-student-alice.slice", `"ds01.user":"alice"`, `"mine":"1"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in what a build left:\n%s", want, out)
		}
	}
	for _, c := range []struct{ flags, text string }{
		{"--network container:build-bob", "this container belongs to bob"},
		{"--network host", "may not use the host's network"},
	} {
		if out := build(c.flags); !strings.Contains(out, c.text) {
			t.Errorf("%s: %s, want %q", c.flags, out, c.text)
		}
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/build?remote=http://127.0.0.1:1/x", ""); got.status != 403 || !strings.Contains(got.body, "from a URL") {
		t.Errorf("remote: %v", got)
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/build?cgroupparent=/evil&labels=x", ""); got.status != 400 {
		t.Errorf("labels that are no JSON: %v", got)
	}
	// A commit neither.
	as(t, lab.Alice, "create", "--name", "build-c", lab.Image)
	for _, change := range []string{"LABEL ds01.user=bob", "label DS01.user=bob", `LABEL ${x}ds01.user=bob`, "LABEL a=b ds01.user=bob", "ONBUILD LABEL ds01.user=bob"} {
		refused(t, lab.Alice, "labels that begin with ds01.", "commit", "-c", change, "build-c", "build-forged:1")
	}
	as(t, lab.Alice, "commit", "-c", "LABEL fine=1", "build-c", "build-forged:1")
	got := ask(t, theProxy.Socket(lab.Alice), "POST", "/commit?container=build-c&repo=build-forged&tag=1", `{"Labels":{"ds01.user":"bob","ok":"1"}}`)
	if got.status != http.StatusCreated {
		t.Fatal(got)
	}
	if labels := admin(t, "image", "inspect", "build-forged:1", "--format", "{{json .Config.Labels}}"); strings.Contains(labels, "bob") || !strings.Contains(labels, `"ok":"1"`) {
		t.Errorf("the committed image has %s", labels)
	}
}

// TestBuildKitSwitch asks for a session where it is allowed and where not.
func TestBuildKitSwitch(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(conf, []byte("builds: {buildkit: deny}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := ownProxy(t, theEngine.Socket, "--config", conf)
	for _, target := range []string{"/session", "/grpc", "/build?version=2"} {
		if got := ask(t, p.Socket(lab.Alice), "POST", target, "", "Connection", "Upgrade", "Upgrade", "h2c"); got.status != 403 || !strings.Contains(got.body, "DOCKER_BUILDKIT=0") {
			t.Errorf("%s: %v", target, got)
		}
	}
	_, br := open(t, theProxy.Socket(lab.Alice), "POST /session HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX-Docker-Expose-Session-Uuid: x\r\nContent-Length: 0\r\n\r\n")
	if h := head(t, br); !strings.HasPrefix(h, "HTTP/1.1 101") {
		t.Errorf("a session where it is allowed:\n%s", h)
	}
	if !strings.Contains(theProxy.Log(), "builds.buildkit is allow") {
		t.Error("the start does not warn about BuildKit")
	}
}

// TestABuildsStepsAreTheBuilders looks at the container of a classic build's step
// while it runs: it has no label, or the one that the Dockerfile says, and is
// alice's all the same.
func TestABuildsStepsAreTheBuilders(t *testing.T) {
	t.Run("without a label", func(t *testing.T) { buildStep(t, "") })
	t.Run("with bob's label", func(t *testing.T) {
		buildStep(t, `LABEL ds01.user=bob ds01.managed=true ds01.created_at=2026-01-01T00:00:00Z\n`)
	})
}

func buildStep(t *testing.T, label string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		cmd := shellCommand(t, &lab.Alice, `printf 'FROM busybox:local\n`+label+`RUN sleep 60\n' >Dockerfile; exec docker build -q --force-rm .`)
		if err := cmd.Start(); err != nil {
			t.Error(err)
			return
		}
		<-ctx.Done()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	defer func() { cancel(); <-done }()
	id := ""
	eventually(t, "the step runs", func() bool {
		out, err := theEngine.Docker(limit(t), "ps", "-q", "--no-trunc")
		for _, one := range strings.Fields(out) {
			if cmd, _ := theEngine.Docker(limit(t), "inspect", one, "--format", "{{.Config.Cmd}}"); strings.Contains(cmd, "sleep 60") {
				id = one
			}
		}
		return err == nil && id != ""
	})
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", id) })
	eventually(t, "bob is told whose it is", func() bool {
		return strings.Contains(ask(t, theProxy.Socket(lab.Bob), "GET", "/containers/"+id+"/json", "").body, "belongs to alice")
	})
	refused(t, lab.Bob, "belongs to alice", "exec", id, "true")
	refused(t, lab.Bob, "belongs to alice", "kill", id[:12])
	as(t, lab.Alice, "exec", id, "true")
	if out := as(t, lab.Alice, "ps", "-q", "--no-trunc"); !strings.Contains(out, id) {
		t.Errorf("alice's ps: %s", out)
	}
	if out := as(t, lab.Bob, "ps", "-aq", "--no-trunc"); strings.Contains(out, id) {
		t.Errorf("bob's ps: %s", out)
	}
}
