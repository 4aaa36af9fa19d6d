package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/policy"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestProfilesComeFromOthers looks at what is inherited, and from how far.
func TestProfilesComeFromOthers(t *testing.T) {
	c := parse(t, `
profiles:
  debug: {from: base, devices: [/dev/fuse], publish: {addresses: [127.0.0.1]}}
  base:
    from: ml-lab
    cap_add: [cap_net_admin, sys_ptrace]
    ipc: []
    publish: {min_port: 2000}
  bare: {cap_add: [SYS_NICE]}
  again: {from: confined}
  blank: {from: ml-lab, devices: }
`)
	lab, confined := c.policies["ml-lab"], c.policies["confined"]
	for _, r := range []struct {
		what      string
		got, want any
	}{
		{"ml-lab keeps what confined has", lab.Restart, confined.Restart},
		{"ml-lab adds", lab.CapAdd, []string{"SYS_PTRACE"}},
		{"confined stays as it is", confined.CapAdd, []string{}},
		{"a list takes the place of the other", c.policies["base"].CapAdd, []string{"NET_ADMIN", "SYS_PTRACE"}},
		{"an empty list does", c.policies["base"].IPC, []string{}},
		{"what stands nowhere is as it was two profiles before", c.policies["debug"].GPUs, true},
		{"the last word counts", c.policies["debug"].Devices, []string{"/dev/fuse"}},
		{"a key below publish stays", c.policies["debug"].MinPort, 2000},
		{"beside another", c.policies["debug"].PublishIP, []string{"127.0.0.1"}},
		{"ml-lab's port is still its own", lab.MinPort, 1024},
		{"nothing comes from nowhere", c.policies["bare"].Ulimit, []string(nil)},
		{"and no GPUs", c.policies["bare"].GPUs, false},
		{"a key without a value is an empty list", len(c.policies["blank"].Devices), 0},
		{"strict fails closed", c.policies["strict"].FailClosed && c.policies["strict"].NoNewPrivileges, true},
		{"nothing but strict does", confined.FailClosed || lab.FailClosed, false},
		{"open is ownership", c.policies["open"].OwnershipOnly, true},
		{"nothing else is", confined.OwnershipOnly || lab.OwnershipOnly || c.policies["strict"].OwnershipOnly, false},
	} {
		if !reflect.DeepEqual(r.got, r.want) {
			t.Errorf("%s: %v, want %v", r.what, r.got, r.want)
		}
	}
	same := *c.policies["again"]
	same.Name = "confined"
	if !reflect.DeepEqual(&same, confined) {
		t.Errorf("from confined alone is\n%+v, want\n%+v", &same, confined)
	}
	for name, p := range c.policies {
		if p.Name != name {
			t.Errorf("%s is called %s", name, p.Name)
		}
	}
}

// TestProfileProblems wants each problem with its line, all of them together, and
// each of them once.
func TestProfileProblems(t *testing.T) {
	for _, r := range []struct {
		text string
		want []string
	}{
		{"profiles:\n  a:\n    from: nosuch", []string{`line 3: profiles.a: there is no profile "nosuch" to come from`}},
		{"profiles:\n  a:\n    from: a", []string{"line 3: profiles.a: comes from itself"}},
		{"profiles:\n  a:\n    from: b\n  b:\n    from: c\n  c:\n    from: a", []string{"line 3: profiles.a: comes from itself"}},
		{"profiles:\n  a:\n    from: [b]", []string{"line 3: cannot unmarshal !!seq into string"}},
		{"profiles:\n  a: 5\n  b: [x]\n  c:", []string{
			"line 2: profiles.a: is not a mapping of keys such as cap_add", "line 3: profiles.b: is not a mapping of keys such as cap_add",
			"line 4: profiles.c: is not a mapping of keys such as cap_add",
		}},
		{"profiles:\n  a:\n    Privileged: true\n    cap_addd: [x]", []string{"line 3: profiles.a: unknown key Privileged", "line 4: profiles.a: unknown key cap_addd"}},
		{"profiles:\n  a:\n    publish:\n      adresses: [127.0.0.1]", []string{"line 4: profiles.a: unknown key publish.adresses"}},
		{"profiles:\n  x: &x\n    gpus: true\n  a:\n    <<: *x", []string{"line 5: profiles.a: unknown key <<"}},
		{"profiles:\n  confined:\n    privileged: true", []string{"line 3: profiles.confined: is built in; give yours another name, with from: confined"}},
		{"profiles:\n  open: {from: strict}", []string{"line 2: profiles.open: is built in; give yours another name, with from: open"}},
		{"profiles:\n  a:\n    cap_add: SYS_ADMIN\n    privileged: maybe", []string{
			"line 3: cannot unmarshal !!str `SYS_ADMIN` into []string", "line 4: cannot unmarshal !!str `maybe` into bool",
		}},
		{"profiles:\n  a:\n    from: b\n  b:\n    privileged: maybe\n  c: {from: b}", []string{"line 5: cannot unmarshal !!str `maybe` into bool"}},
		{"profiles:\n  a:\n    publish: 80", []string{"line 3: cannot unmarshal !!int `80` into keys such as min_port"}},
		{"profiles:\n  a:\n    publish: {min_port: high}", []string{"line 3: cannot unmarshal !!str `high` into int"}},
		{"profiles:\n  a:\n    gpus: true\n    network: [bridge]\n    pid: ['container:x']\n    devices: [fuse, /dev/../x, '/dev/[', /devil]\n    publish: {min_port: 65536}", []string{
			`line 3: profiles.a: network: "bridge" is not host`, `line 3: profiles.a: pid: "container:x" is not host`,
			`line 3: profiles.a: devices: "fuse" is not a path below /dev`, `line 3: profiles.a: devices: "/dev/../x" is not a path below /dev`,
			`line 3: profiles.a: devices: "/dev/[" is not a path below /dev`, `line 3: profiles.a: devices: "/devil" is not a path below /dev`,
			"line 3: profiles.a: publish.min_port: 65536 is not a port",
		}},
		{"profiles:\n  a: {publish: {min_port: -1}}", []string{"line 2: profiles.a: publish.min_port: -1 is not a port"}},
		{"profile: nosuch\nprofile_users:\n  ann: no\nprofile_groups:\n  g: ''", []string{
			`line 5: profile_groups.g: there is no profile ""`, `line 3: profile_users.ann: there is no profile "no"`, `line 1: profile: there is no profile "nosuch"`,
		}},
		{"profile: a\nprofiles:\n  a:\n    from: nosuch", []string{
			`line 4: profiles.a: there is no profile "nosuch" to come from`, `line 1: profile: there is no profile "a"`,
		}},
	} {
		c, err := parseConfig("c.yaml", []byte(r.text))
		if err == nil {
			t.Errorf("%q: no problem found: %+v", r.text, c)
			continue
		}
		if want := "c.yaml: " + strings.Join(r.want, "\nc.yaml: "); err.Error() != want {
			t.Errorf("%q:\n got %s\nwant %s", r.text, err, want)
		}
	}
}

// TestProfilesAreChosen goes from the user over the group to the daemon.
func TestProfilesAreChosen(t *testing.T) {
	c := parse(t, "profile: strict\nprofile_groups: {phd: ml-lab, staff: own}\nprofile_users: {ann: open}\nprofiles: {own: {from: confined}}")
	rules := c.rules(limitsAt(t, "/none/limits.yaml"))
	for _, r := range []struct{ user, group, name, key string }{
		{"ann", "phd", "open", "profile_users.ann"},
		{"bob", "phd", "ml-lab", "profile_groups.phd"},
		{"bob", "staff", "own", "profile_groups.staff"},
		{"bob", "student", "strict", "profile"},
		{"phd", "", "strict", "profile"},
	} {
		name, key := c.profileOf(r.user, r.group)
		if name != r.name || key != r.key {
			t.Errorf("%s of %s: %s by %s, want %s by %s", r.user, r.group, name, key, r.name, r.key)
		}
		if p := rules.ProfileOf(r.user, r.group); p == nil || p.Name != r.name {
			t.Errorf("%s of %s: the rules have %+v", r.user, r.group, p)
		}
	}
	if p := parse(t, "").rules(limitsAt(t, "/none/limits.yaml")).ProfileOf("bob", "student"); p == nil || p.Name != "confined" {
		t.Errorf("without a word it is %+v", p)
	}
}

// TestEveryKeyCounts wants every key of a profile to stand in the built-in file,
// where all keys are explained, and to change what the rules see.
func TestEveryKeyCounts(t *testing.T) {
	var built map[string]map[string]yaml.Node
	if err := yaml.Unmarshal(builtInProfiles, &built); err != nil {
		t.Fatal(err)
	}
	set := make(map[string]bool)
	none := (&profileSource{}).policy("x")
	for i, key := range profileOrder {
		if key == "from" {
			continue
		}
		if _, ok := built["confined"][key]; !ok && key != "ownership_only" {
			t.Errorf("confined does not show the key %s", key)
		}
		one := &profileSource{}
		fill(reflect.ValueOf(&one.file).Elem().Field(i))
		changed := differing(one.policy("x"), none)
		if len(changed) == 0 {
			t.Errorf("nothing reads the key %s", key)
		}
		for _, field := range changed {
			if set[field] {
				t.Errorf("%s is set by more than one key", field)
			}
			set[field] = true
		}
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[policy.Profile]()) {
		if !set[f.Name] && f.Name != "Name" {
			t.Errorf("no key sets %s", f.Name)
		}
	}
	for key := range built["confined"] {
		if !slices.Contains(profileOrder, key) {
			t.Errorf("confined has the key %s, which is none", key)
		}
	}
}

// fill gives a value that is not its zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	default:
		panic(fmt.Sprintf("a key of the kind %v", v.Kind()))
	}
}

// differing names the fields in which two profiles differ.
func differing(a, b *policy.Profile) []string {
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[policy.Profile]()) {
		x, y := reflect.ValueOf(a).Elem().FieldByIndex(f.Index), reflect.ValueOf(b).Elem().FieldByIndex(f.Index)
		if !reflect.DeepEqual(x.Interface(), y.Interface()) {
			names = append(names, f.Name)
		}
	}
	return names
}

// TestExplain explains each file of testdata/explain: a user and a group, the
// configuration, a line of dashes, and what is printed.
func TestExplain(t *testing.T) {
	files, err := filepath.Glob("testdata/explain/*.txt")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		input, want, _ := strings.Cut(string(text), "----\n")
		who, conf, _ := strings.Cut(input, "\n")
		user, group, _ := strings.Cut(who, " ")
		var out bytes.Buffer
		if err := parse(t, conf).explain(&out, user, group, limitsAt(t, "/none/limits.yaml")); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(file, []byte(input+"----\n"+out.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if out.String() != want {
			t.Errorf("%s:\n%s\nwant\n%s", file, out.String(), want)
		}
	}
}

// TestCheckConfigExplains goes by the command, with the group of a limits file.
func TestCheckConfigExplains(t *testing.T) {
	dir := write(t, map[string]string{
		"limits.yaml":         "defaults: {memory: 8g}\ngroups:\n  phd:\n    members: [ann]\n    memory: 16g\n    aggregate: {gpu_limit: 1}\n",
		"user-overrides.yaml": "ann: {aggregate: {gpu_limit: 1.5}}\n",
	})
	conf := "profile_groups: {phd: ml-lab}\nlimits_file: " + filepath.Join(dir, "limits.yaml") + "\n"
	path := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	for user, group := range map[string]string{"ann": "phd", "bob": "student"} {
		var out, want bytes.Buffer
		cmd := newCheckConfig()
		cmd.SetOut(&out)
		cmd.SetArgs([]string{"--config", path, "--explain", user})
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		if err := parse(t, conf).explain(&want, user, group, limitsAt(t, filepath.Join(dir, "limits.yaml"))); err != nil {
			t.Fatal(err)
		}
		if out.String() != want.String() || !strings.Contains(out.String(), group) {
			t.Errorf("%s of %s:\n%s\nwant\n%s", user, group, out.String(), want.String())
		}
		lines := map[string][]string{
			"ann": {"memory group phd: line 5 16g", "aggregate.gpu_limit override: line 1 1.5", "shm_size not set unlimited"},
			"bob": {"memory defaults: line 1 8g", "aggregate.gpu_limit not set unlimited"},
		}
		for _, line := range lines[user] {
			if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), line) {
				t.Errorf("%s: no line %q in\n%s", user, line, out.String())
			}
		}
	}
}
