package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/limits"
	"github.com/ds01/ds01-proxy/proxy/users"
)

// limitsAt opens limits that must be good.
func limitsAt(t *testing.T, path string) *limits.Store {
	t.Helper()
	l, err := limits.Open(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func parse(t *testing.T, text string) *config {
	t.Helper()
	c, err := parseConfig("c.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaultConfigHolds(t *testing.T) {
	want := &config{
		Engine: "unix:///var/run/docker.sock", RunDir: "/run/ds01-proxy", StateDir: "/var/lib/ds01-proxy",
		LimitsFile: "/etc/ds01/resource-limits.yaml",
		Users: usersConfig{
			UIDMin: 1000, UIDMax: 60000, Include: []string{}, Groups: []string{}, Exclude: []string{}, Refresh: "30s",
		},
		Admins:      adminsConfig{Users: []string{}, Groups: []string{"ds01-admin"}},
		Enforcement: "full", EnforcementGroups: map[string]string{}, EnforcementUsers: map[string]string{},
		Profile: "confined", ProfileGroups: map[string]string{}, ProfileUsers: map[string]string{},
		Preset: "compatible", UnownedContainers: "allow", UnownedResources: "allow", Images: "shared", UnknownRoutes: "allow", ContainerRoot: "allow", OnCgroupError: "allow", HostLinks: "allow",
		Quota:    quotaConfig{Accounting: "usage", Count: "all", PageCache: "active", Slices: "transient"},
		Networks: networksConfig{Pools: []string{}, MaxPerUser: 16},
		Builds:   buildsConfig{BuildKit: "allow", Remote: "deny"},
	}
	for what, text := range map[string]string{
		"no file": "", "nothing but comments": "# nothing\n", "the file itself": string(defaultConfig),
		"an empty mapping": "{}\n", "values left empty": "engine:\nusers:\nenforcement:\npreset:\nunknown_routes:\n",
	} {
		c := parse(t, text)
		// What was read of the file stands beside what it says.
		c.root, c.read, c.policies = yaml.Node{}, nil, nil
		if !reflect.DeepEqual(c, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", what, c, want)
		}
	}
	c := parse(t, "")
	if got := c.enginePath(); got != "/var/run/docker.sock" {
		t.Errorf("engine path %q", got)
	}
	if got := c.sharedPath(); got != "/run/ds01-proxy/docker.sock" {
		t.Errorf("shared socket %q", got)
	}
	if got := c.auditPath(); got != "/var/lib/ds01-proxy/audit.jsonl" {
		t.Errorf("audit log %q", got)
	}
	if got := c.refresh(); got != 30*time.Second {
		t.Errorf("refresh %v", got)
	}
}

// What default.yaml shows as a comment must be a key too.
func TestDefaultConfigShowsOnlyKeysThatExist(t *testing.T) {
	var shown []string
	for line := range strings.Lines(string(defaultConfig)) {
		if key := strings.TrimPrefix(line, "# "); key != line && strings.Contains(key, "_") && strings.Contains(key, ": /") && !strings.Contains(key, "ds01-proxy:") {
			shown = append(shown, key)
		}
	}
	if len(shown) < 2 {
		t.Fatalf("found only %q", shown)
	}
	parse(t, strings.Join(shown, ""))
}

func TestConfigValues(t *testing.T) {
	builtInLimits := limitsAt(t, "/none/limits.yaml")
	for _, r := range []struct {
		text string
		got  func(*config) any
		want any
	}{
		{"shared_socket: ''", func(c *config) any { return c.sharedPath() }, ""},
		{"shared_socket: /s", func(c *config) any { return c.sharedPath() }, "/s"},
		{"run_dir: /r", func(c *config) any { return c.sharedPath() }, "/r/docker.sock"},
		{"audit_log: stderr", func(c *config) any { return c.auditPath() }, "stderr"},
		{"audit_log: /a.jsonl", func(c *config) any { return c.auditPath() }, "/a.jsonl"},
		{"state_dir: /s", func(c *config) any { return c.auditPath() }, "/s/audit.jsonl"},
		{"users: {refresh: 1s}", func(c *config) any { return c.refresh() }, time.Second},
		{"users: {refresh: 2m}", func(c *config) any { return c.Users.UIDMax }, int64(60000)},
		{"users: {uid_min: 1, uid_max: 4294967294}", func(c *config) any { return c.rules(builtInLimits).UIDMax }, uint32(4294967294)},
		{"users: {uid_min: 5, uid_max: 5}", func(c *config) any { return c.rules(builtInLimits).UIDMin }, uint32(5)},
		{"admins: {groups: []}", func(c *config) any { return len(c.Admins.Groups) }, 0},
		{"admins: {groups: [a, b]}", func(c *config) any { return c.Admins.Groups }, []string{"a", "b"}},
		{"unowned_containers: deny", func(c *config) any { return c.UnownedContainers + " " + c.UnknownRoutes }, "deny allow"},
		{"preset: strict", func(c *config) any { return c.UnownedResources }, "deny"},
		{"networks: {pools: [10.9.8.7/16], max_per_user: 3}", func(c *config) any { return fmt.Sprint(c.networkRules()) }, "{[10.9.0.0/16] 3}"},
		{"unknown_routes: deny", func(c *config) any { return c.UnownedContainers + " " + c.UnknownRoutes }, "allow deny"},
		{"preset: compatible", func(c *config) any { return c.UnownedContainers + " " + c.UnknownRoutes }, "allow allow"},
		{"preset: strict", func(c *config) any { return c.UnownedContainers + " " + c.UnknownRoutes }, "deny deny"},
		{"preset: strict\nunowned_containers: deny\nunknown_routes: deny", func(c *config) any { return c.UnownedContainers + " " + c.UnknownRoutes }, "deny deny"},
	} {
		if got := r.got(parse(t, r.text)); !reflect.DeepEqual(got, r.want) {
			t.Errorf("%q: got %v, want %v", r.text, got, r.want)
		}
	}
}

func TestConfigProblems(t *testing.T) {
	const uidRange = "is not a uid from 1 to 4294967294"
	for _, r := range []struct {
		text string
		want []string
	}{
		{"engine: /var/run/docker.sock", []string{`line 1: engine: "/var/run/docker.sock" is not unix:// followed by an absolute path`}},
		{"engine: unix://docker.sock", []string{`line 1: engine: "unix://docker.sock" is not unix:// followed by an absolute path`}},
		{"engine: tcp://127.0.0.1:2375", []string{`line 1: engine: "tcp://127.0.0.1:2375" is not unix:// followed by an absolute path`}},
		{"engine: ''", []string{`line 1: engine: "" is not unix:// followed by an absolute path`}},
		{"run_dir: r", []string{`line 1: run_dir: "r" is not an absolute path`}},
		{"state_dir: ''", []string{`line 1: state_dir: "" is not an absolute path`}},
		{"limits_file: l", []string{`line 1: limits_file: "l" is not an absolute path`}},
		{"shared_socket: s", []string{`line 1: shared_socket: "s" is not an absolute path`}},
		{"engine: unix:///s\nshared_socket: /s", []string{"line 2: shared_socket: is the Engine's own socket; the Engine must listen elsewhere for that"}},
		{"audit_log: a", []string{`line 1: audit_log: "a" is not an absolute path`}},
		{"users:\n  uid_min: 0", []string{"line 2: users.uid_min: 0 " + uidRange}},
		{"users:\n  uid_min: -1", []string{"line 2: users.uid_min: -1 " + uidRange}},
		{"users:\n  uid_max: 4294967295", []string{"line 2: users.uid_max: 4294967295 " + uidRange}},
		{"users: {uid_max: 4294968296}", []string{"line 1: users.uid_max: 4294968296 " + uidRange}},
		{"users:\n  uid_min: 60001", []string{"line 2: users.uid_min: 60001 is above uid_max 60000"}},
		{"users: {refresh: 999ms}", []string{`line 1: users.refresh: "999ms" is not a duration of a second or more, such as 30s`}},
		{"users: {refresh: 30}", []string{`line 1: users.refresh: "30" is not a duration of a second or more, such as 30s`}},
		{"users: {refresh: -5s}", []string{`line 1: users.refresh: "-5s" is not a duration of a second or more, such as 30s`}},
		{"enforcement: off", []string{`line 1: enforcement: "off" is not an enforcement mode: use full, monitoring or disabled`}},
		{"enforcement_groups:\n  b: full\n  a: FULL", []string{`line 3: enforcement_groups.a: "FULL" is not an enforcement mode: use full, monitoring or disabled`}},
		{"enforcement_users: {a: ''}", []string{`line 1: enforcement_users.a: "" is not an enforcement mode: use full, monitoring or disabled`}},
		{"preset: paranoid", []string{`line 1: preset: "paranoid" is neither compatible nor strict`}},
		{"preset: ''", []string{`line 1: preset: "" is neither compatible nor strict`}},
		{"unowned_containers: Deny", []string{`line 1: unowned_containers: "Deny" is neither allow nor deny`}},
		{"unknown_routes: 'false'", []string{`line 1: unknown_routes: "false" is neither allow nor deny`}},
		{"preset: strict\n\nunowned_containers: allow", []string{"line 3: unowned_containers: contradicts preset: strict, which denies it; remove one of the two"}},
		{"unknown_routes: allow\npreset: strict", []string{"line 1: unknown_routes: contradicts preset: strict, which denies it; remove one of the two"}},

		{"\n\nengin: x", []string{"line 3: unknown key engin"}},
		{"Engine: unix:///s", []string{"line 1: unknown key Engine"}},
		{"only: [a]", []string{"line 1: unknown key only"}},
		{"users: {uid: 5}", []string{"line 1: unknown key uid"}},
		{"admins: {group: [a]}", []string{"line 1: unknown key group"}},
		{"---\npreset: strict\n---\npreset: compatible", []string{"more than one YAML document; keep the first"}},
		{"preset: strict\n---\n", []string{"more than one YAML document; keep the first"}},

		{
			"engine: x\n\nnonsense: 1\nusers:\n  uid_min: 0\n  shell: y\n  refresh: never\npreset: strict\nunknown_routes: allow\nenforcement_users:\n  bob: maybe\n  ann: maybe\n---\nmore: 1",
			[]string{
				"line 3: unknown key nonsense",
				"line 6: unknown key shell",
				"more than one YAML document; keep the first",
				`line 1: engine: "x" is not unix:// followed by an absolute path`,
				"line 5: users.uid_min: 0 " + uidRange,
				`line 7: users.refresh: "never" is not a duration of a second or more, such as 30s`,
				`line 12: enforcement_users.ann: "maybe" is not an enforcement mode: use full, monitoring or disabled`,
				`line 11: enforcement_users.bob: "maybe" is not an enforcement mode: use full, monitoring or disabled`,
				"line 9: unknown_routes: contradicts preset: strict, which denies it; remove one of the two",
			},
		},
	} {
		c, err := parseConfig("/etc/c.yaml", []byte(r.text))
		if err == nil {
			t.Errorf("%q: no problem found: %+v", r.text, c)
			continue
		}
		want := "/etc/c.yaml: " + strings.Join(r.want, "\n/etc/c.yaml: ")
		if err.Error() != want {
			t.Errorf("%q:\n got %s\nwant %s", r.text, err, want)
		}
		if c != nil {
			t.Errorf("%q: a configuration came with the error: %+v", r.text, c)
		}
	}
}

// The words of these are the YAML decoder's; the place must be right.
func TestConfigSyntax(t *testing.T) {
	for _, r := range []struct{ text, want string }{
		{"engine: [", "c.yaml: line "},
		{"preset: strict\n\tx: y", "c.yaml: line 2"},
		{"users: 5", "c.yaml: line 1: "},
		{"preset: strict\nusers: {uid_min: many}", "c.yaml: line 2: "},
		{"preset: strict\nadmins: {users: {a: b}}", "c.yaml: line 2: "},
		{"preset: strict\npreset: strict", "c.yaml: line 2: "},
		{"- a", "c.yaml: line 1: "},
		{"just words", "c.yaml: line 1: "},
	} {
		c, err := parseConfig("c.yaml", []byte(r.text))
		if err == nil || !strings.HasPrefix(err.Error(), r.want) {
			t.Errorf("%q: got %+v, %v; want an error that begins with %q", r.text, c, err, r.want)
		}
	}
}

func TestModes(t *testing.T) {
	c := parse(t, "enforcement: monitoring\nenforcement_groups: {phd: full, lab: disabled}\nenforcement_users: {ann: disabled, bob: full}\n")
	for _, r := range []struct {
		user, group string
		want        policy.Mode
	}{
		{"zoe", "student", policy.ModeMonitoring},
		{"zoe", "", policy.ModeMonitoring},
		{"zoe", "phd", policy.ModeFull},
		{"zoe", "lab", policy.ModeDisabled},
		{"ann", "phd", policy.ModeDisabled},
		{"bob", "lab", policy.ModeFull},
		{"phd", "student", policy.ModeMonitoring},
	} {
		if got := c.modeOf(r.user, r.group); got != r.want {
			t.Errorf("%s of %s: %v, want %v", r.user, r.group, got, r.want)
		}
	}
	// Nothing that was not validated may open anything.
	if got := (&config{Enforcement: "nonsense"}).modeOf("ann", "phd"); got != policy.ModeFull {
		t.Errorf("a mode that is none: %v", got)
	}
	for text, want := range map[string]policy.Switch{"allow": policy.SwitchAllow, "deny": policy.SwitchDeny, "": policy.SwitchDeny, "ALLOW": policy.SwitchDeny} {
		if got := switchOf(text); got != want {
			t.Errorf("switch %q: %v, want %v", text, got, want)
		}
	}
}

// write puts files under a fresh directory.
func write(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoadConfig(t *testing.T) {
	dir := write(t, map[string]string{"c.yaml": "preset: strict\n", "bad.yaml": "a: b\n"})
	missing := filepath.Join(dir, "none.yaml")
	if c, err := loadConfig(filepath.Join(dir, "c.yaml"), true); err != nil || c.UnknownRoutes != "deny" {
		t.Errorf("a file: %+v, %v", c, err)
	}
	if c, err := loadConfig(missing, false); err != nil || c.Preset != "compatible" {
		t.Errorf("a missing file that need not be there: %+v, %v", c, err)
	}
	if c, err := loadConfig(missing, true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file that must be there: %+v, %v", c, err)
	}
	for _, must := range []bool{true, false} {
		if c, err := loadConfig(dir, must); err == nil {
			t.Errorf("a directory: %+v", c)
		}
		bad := filepath.Join(dir, "bad.yaml")
		if c, err := loadConfig(bad, must); err == nil || err.Error() != bad+": line 1: unknown key a" {
			t.Errorf("a broken file: %+v, %v", c, err)
		}
	}
}

func TestParseUser(t *testing.T) {
	for _, r := range []struct {
		text string
		want users.Account
		err  string
	}{
		{"alice:1001", users.Account{Name: "alice", UID: 1001, GID: 1001, Shell: "/bin/sh"}, ""},
		{"a:1", users.Account{Name: "a", UID: 1, GID: 1, Shell: "/bin/sh"}, ""},
		{"a:4294967294", users.Account{Name: "a", UID: 4294967294, GID: 4294967294, Shell: "/bin/sh"}, ""},
		{"a:0", users.Account{}, "--user a:0: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:00", users.Account{}, "--user a:00: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:-1", users.Account{}, "--user a:-1: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:4294967296", users.Account{}, "--user a:4294967296: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:0x3e9", users.Account{}, "--user a:0x3e9: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:", users.Account{}, "--user a:: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:b", users.Account{}, "--user a:b: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:1:2", users.Account{}, "--user a:1:2: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{":1001", users.Account{}, "--user :1001: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{":", users.Account{}, "--user :: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"a:4294967295", users.Account{}, "--user a:4294967295: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"../x:1001", users.Account{}, "--user ../x:1001: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{".x:1001", users.Account{}, "--user .x:1001: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{"root:0", users.Account{}, "--user root:0: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
	} {
		got, err := parseUser(r.text)
		if r.err == "" && (err != nil || got != r.want) || r.err != "" && (err == nil || err.Error() != r.err) {
			t.Errorf("%q: got %+v, %v; want %+v, %q", r.text, got, err, r.want, r.err)
		}
	}
	if _, err := parseUser("root"); err == nil || err.Error() != "--user root: uid 0 needs no socket; it has the Engine's own" {
		t.Errorf("root: %v", err)
	}
	if _, err := parseUser("no-such-user-of-ds01"); !errors.Is(err, users.ErrUnknown) || !strings.Contains(err.Error(), "use NAME:UID") {
		t.Errorf("an unknown name: %v", err)
	}
	// Every Debian has this account.
	if a, err := parseUser("daemon"); err != nil || a.Name != "daemon" || a.UID != 1 {
		t.Errorf("daemon: %+v, %v", a, err)
	}
}

// The directory's groups and admins are those of the limits file and of the
// configuration together.
func TestRulesHaveGroupsOfTheLimitsFile(t *testing.T) {
	dir := write(t, map[string]string{
		"limits.yaml":        "groups: {phd: {system_group: daemon}, lab: {members: [bob]}}\naccess_control: {admin_users: [datasciencelab], admin_group: ds01-admin}\n",
		"groups/lab.members": "gus\n",
	})
	rules := parse(t, "admins: {users: [ann], groups: [wheel]}").rules(limitsAt(t, filepath.Join(dir, "limits.yaml")))
	if want := []string{"ann", "datasciencelab"}; !reflect.DeepEqual(rules.AdminUsers, want) {
		t.Errorf("admin users %q, want %q", rules.AdminUsers, want)
	}
	if want := []string{"wheel", "ds01-admin"}; !reflect.DeepEqual(rules.AdminGroups, want) {
		t.Errorf("admin groups %q, want %q", rules.AdminGroups, want)
	}
	for user, want := range map[string]string{"bob": "lab", "gus": "lab", "dora": "student", "eve": "phd"} {
		in := func([]string) (bool, error) { return user == "eve", nil }
		if got, err := rules.GroupOf(user, in); err != nil || got != want {
			t.Errorf("the directory puts %s in %q, %v; want %q", user, got, err, want)
		}
	}
}

// The system's own groups are asked about users who have an account.
func TestGroupOfByGroupsOfTheSystem(t *testing.T) {
	dir := write(t, map[string]string{"limits.yaml": "groups: {lab: {system_group: [no-such-group-of-ds01, daemon]}}"})
	l := limitsAt(t, filepath.Join(dir, "limits.yaml"))
	for user, want := range map[string]string{"daemon": "lab", "bin": "student", "no-such-user-of-ds01": "student"} {
		if got, err := groupOf(l, new(users.NSS), user); err != nil || got != want {
			t.Errorf("%s is in %q, %v; want %q", user, got, err, want)
		}
	}
}

// run executes the command line as a shell would and returns what it printed.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.Execute()
	return out.String(), err
}

func TestCheckConfig(t *testing.T) {
	dir := write(t, map[string]string{
		"good.yaml":     "preset: strict\nrun_dir: DIR/run\nstate_dir: DIR/state\nlimits_file: DIR/limits.yaml\n",
		"bad.yaml":      "presett: strict\nenforcement: off\n",
		"unlimits.yaml": "limits_file: DIR/broken.yaml\n",
		"limits.yaml":   "groups: {phd: {members: [ann]}}\n",
		"broken.yaml":   "groups: {phd: {memory: 3x}}\ndefaults:\n  pids_limit: -1\n",
		"strange.yaml":  "limits_file: DIR/unknown.yaml\n",
		"unknown.yaml":  "defaults:\n  memmory: 3g\n",
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"good.yaml", "unlimits.yaml", "strange.yaml"} {
		text, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), bytes.ReplaceAll(text, []byte("DIR"), []byte(dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []struct {
		args []string
		out  string
		err  string
	}{
		{[]string{at("good.yaml")}, "configuration is valid\n", ""},
		{[]string{at("good.yaml"), "--user", "ann:1001", "--engine", "unix:///e"}, "configuration is valid\n", ""},
		{
			[]string{at("bad.yaml")}, "",
			at("bad.yaml") + ": line 1: unknown key presett\n" + at("bad.yaml") + `: line 2: enforcement: "off" is not an enforcement mode: use full, monitoring or disabled`,
		},
		{
			[]string{at("unlimits.yaml")}, "",
			at("broken.yaml") + `: line 1: groups.phd.memory: "3x" is not a size such as 512m or 32g; null is unlimited` + "\n" +
				at("broken.yaml") + `: line 3: defaults.pids_limit: "-1" is not a whole number from 1 to 4194304; null is unlimited`,
		},
		{[]string{at("strange.yaml")}, "note: " + at("unknown.yaml") + ": line 2: defaults.memmory: is not read\nconfiguration is valid\n", ""},
		{[]string{at("none.yaml")}, "", "configuration: open " + at("none.yaml") + ": no such file or directory"},
		{[]string{at("good.yaml"), "--engine", "tcp://x"}, "", `engine: "tcp://x" is not unix:// followed by an absolute path`},
		{[]string{at("good.yaml"), "--user", "ann:0"}, "", "--user ann:0: not NAME:UID with a name that can be a file's and a uid from 1 to 4294967294"},
		{[]string{at("good.yaml"), "more"}, "", `unknown command "more" for "ds01-proxy check-config"`},
	} {
		out, err := run(t, append([]string{"check-config", "--config"}, r.args...)...)
		if out != r.out || (err == nil) != (r.err == "") || err != nil && err.Error() != r.err {
			t.Errorf("%q:\n got %q, %v\nwant %q, %s", r.args, out, err, r.out, r.err)
		}
	}
	for _, name := range []string{"run", "state"} {
		if _, err := os.Lstat(at(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was made by a check: %v", name, err)
		}
	}
}

// printed runs check-config --print and reads what it printed as a file.
func printed(t *testing.T, args ...string) *config {
	t.Helper()
	out, err := run(t, append([]string{"check-config", "--print"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

func TestFlagsOverrideTheFile(t *testing.T) {
	const text = "engine: unix:///e\nrun_dir: /r\nstate_dir: /s\nshared_socket: /shared\naudit_log: /a\nlimits_file: /none/limits.yaml\nusers: {uid_min: 5}\n"
	file := filepath.Join(write(t, map[string]string{"c.yaml": text}), "c.yaml")
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		args                              []string
		engine, run, state, shared, audit string
	}{
		{nil, "unix:///e", "/r", "/s", "/shared", "/a"},
		{[]string{"--engine", "unix:///x"}, "unix:///x", "/r", "/s", "/shared", "/a"},
		{[]string{"--run-dir", "/x"}, "unix:///e", "/x", "/s", "/x/docker.sock", "/a"},
		{[]string{"--state-dir", "/x"}, "unix:///e", "/r", "/x", "/shared", "/x/audit.jsonl"},
		{[]string{"--run-dir", "x/../y", "--state-dir", "z"}, "unix:///e", cwd + "/y", cwd + "/z", cwd + "/y/docker.sock", cwd + "/z/audit.jsonl"},
	} {
		c := printed(t, append([]string{"--config", file}, r.args...)...)
		got := []string{c.Engine, c.RunDir, c.StateDir, c.sharedPath(), c.auditPath()}
		if want := []string{r.engine, r.run, r.state, r.shared, r.audit}; !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, want %q", r.args, got, want)
		}
		if c.Users.UIDMin != 5 || c.Users.UIDMax != 60000 {
			t.Errorf("%q: users %+v", r.args, c.Users)
		}
	}
}

// What check-config prints is a whole configuration file that means the same.
func TestPrintedConfigIsTheSame(t *testing.T) {
	for _, text := range []string{
		"", "preset: strict\n", "shared_socket: ''\n", "audit_log: stderr\nusers: {exclude: [a]}\n",
		"enforcement_groups: {phd: monitoring}\nadmins: {users: [x], groups: []}\n",
	} {
		file := filepath.Join(write(t, map[string]string{"c.yaml": text + "limits_file: /none/limits.yaml\n"}), "c.yaml")
		want, err := loadConfig(file, true)
		if err != nil {
			t.Fatal(err)
		}
		got := printed(t, "--config", file)
		gotText, err1 := yaml.Marshal(got)
		wantText, err2 := yaml.Marshal(want)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(gotText, wantText) || got.sharedPath() != want.sharedPath() {
			t.Errorf("%q:\n got %s\nwant %s", text, gotText, wantText)
		}
	}
}

func TestUsersCommand(t *testing.T) {
	dir := write(t, map[string]string{
		"limits.yaml": "groups: {phd: {members: [ann]}}\naccess_control: {admin_users: [bob]}\n",
	})
	file := filepath.Join(dir, "c.yaml")
	text := "run_dir: /r\nlimits_file: " + filepath.Join(dir, "limits.yaml") + "\nenforcement_users: {carl: monitoring}\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"users", "--config", file, "--user", "carl:1003", "--user", "ann:1001", "--user", "bob:1002"}
	out, err := run(t, append(args, "--json")...)
	if err != nil {
		t.Fatal(err)
	}
	var got []userRow
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	want := []userRow{
		{"ann", 1001, "phd", "full", false, "/r/users/ann.sock"},
		{"bob", 1002, "student", "full", true, "/r/users/bob.sock"},
		{"carl", 1003, "student", "monitoring", false, "/r/users/carl.sock"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	out, err = run(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	const table = `USER   UID    GROUP     ENFORCEMENT    SOCKET
ann    1001   phd       full           /r/users/ann.sock
bob    1002   student   none (admin)   /r/users/bob.sock
carl   1003   student   monitoring     /r/users/carl.sock
`
	if out != table {
		t.Errorf("got\n%swant\n%s", out, table)
	}
}
