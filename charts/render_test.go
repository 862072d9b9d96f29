package charts

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// Programs that `make test` builds.
const (
	helm4 = "helm"
	helm3 = "helm3"
)

var helms = []string{helm4, helm3}

// tool returns the path of a program that `make` has built.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "bin", name))
	require.NoError(t, err)
	_, err = os.Stat(path)
	require.NoError(t, err, "run: make bin/%s", name)
	return path
}

// run runs a program that `make` has built.
func run(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), tool(t, name), args...)
	command.Dir = dir
	// No personal settings of Helm, and no cluster.
	command.Env = []string{"HOME=" + t.TempDir(), "KUBECONFIG=/dev/null", "PATH=" + os.Getenv("PATH")}
	var complaints bytes.Buffer
	command.Stderr = &complaints
	printed, err := command.Output()
	if err != nil {
		err = errors.Join(err, errors.New(complaints.String()))
	}
	return string(printed), err
}

// output runs a program and returns what it printed, errors included.
func output(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	printed, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	return string(printed), err
}

// object is a Kubernetes object, or a part of one.
type object = map[string]any

// at returns what is at a path, such as spec.replicas or spec.containers.0.name; nil if there is nothing.
func at(from any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		switch value := from.(type) {
		case object:
			from = value[key]
		case []any:
			n := int(key[0] - '0')
			if n >= len(value) {
				return nil
			}
			from = value[n]
		default:
			return nil
		}
	}
	return from
}

// objects are the objects that a chart renders to.
type objects []object

func (o objects) all(kind string) objects {
	return slices.DeleteFunc(slices.Clone(o), func(x object) bool { return x["kind"] != kind })
}

func (o objects) find(t *testing.T, kind, name string) object {
	t.Helper()
	for _, x := range o.all(kind) {
		if at(x, "metadata.name") == name {
			return x
		}
	}
	require.FailNow(t, "there is no "+kind+" "+name, "there are %s", o.names())
	return nil
}

func (o objects) has(kind, name string) bool {
	return slices.Contains(o.names(), kind+"/"+name)
}

// names lists kind/name, in order.
func (o objects) names() []string {
	names := make([]string, 0, len(o))
	for _, x := range o {
		names = append(names, x["kind"].(string)+"/"+at(x, "metadata.name").(string))
	}
	slices.Sort(names)
	return names
}

func parse(t *testing.T, text string) objects {
	t.Helper()
	var list objects
	for decoder := yaml.NewDecoder(strings.NewReader(text)); ; {
		var x object
		err := decoder.Decode(&x)
		if errors.Is(err, io.EOF) {
			return list
		}
		require.NoError(t, err, text)
		if x != nil {
			list = append(list, x)
		}
	}
}

// tryTemplate runs `helm template` on the chart, for a cluster that has every operator.
func tryTemplate(t *testing.T, helm string, args ...string) (string, error) {
	t.Helper()
	base := []string{
		"template", "myticket", "myticket", "--namespace", "tickets", "--kube-version", "1.34.0",
		"--api-versions", "postgresql.cnpg.io/v1", "--api-versions", "barmancloud.cnpg.io/v1",
		"--api-versions", "monitoring.coreos.com/v1", "--api-versions", "gateway.networking.k8s.io/v1",
		"--set", "image.repository=myticket",
	}
	return run(t, ".", helm, append(base, args...)...)
}

// render renders the chart with values, each as in --set.
func render(t *testing.T, set ...string) objects {
	t.Helper()
	return renderWith(t, helm4, values(set...)...)
}

// renderText returns the text that the chart renders to.
func renderText(t *testing.T, set ...string) string {
	t.Helper()
	text, err := tryTemplate(t, helm4, values(set...)...)
	require.NoError(t, err)
	return text
}

func renderWith(t *testing.T, helm string, args ...string) objects {
	t.Helper()
	text, err := tryTemplate(t, helm, args...)
	require.NoError(t, err)
	return parse(t, text)
}

func values(set ...string) []string {
	var args []string
	for _, value := range set {
		args = append(args, "--set", value)
	}
	return args
}

// sending are values that have events sent, and archiving are values that have old partitions archived.
func sending() []string {
	return []string{
		"autoscaling.maxReplicas=8", "events.enabled=true", "events.subscriptions[0].name=loyalty", "events.subscriptions[0].target=nats://nats.nats:4223/TICKETS",
		"events.subscriptions[0].secret=file:/etc/myticket/targets/nats/creds", "events.secrets={nats}",
	}
}

func archiving() []string {
	return []string{"archive.enabled=true", "archive.url=s3://tickets?region=eu-central-1", "archive.keep=30d"}
}

// modes are the modes of the database, with the values that they need.
func modes() map[string][]string {
	return map[string][]string{
		"hook":     nil,
		"inline":   {"database.mode=inline"},
		"external": {"database.mode=external", "database.external.secretName=tickets-database"},
	}
}

// cluster returns the CloudNativePG Cluster: in mode hook it is in a ConfigMap, which a Job applies.
func (o objects) cluster(t *testing.T) object {
	t.Helper()
	return o.database(t).find(t, "Cluster", "myticket-db")
}

// database returns the objects for CloudNativePG, whether they are in the release or in the ConfigMap of the hook.
func (o objects) database(t *testing.T) objects {
	t.Helper()
	found := slices.Concat(o.all("Cluster"), o.all("ObjectStore"))
	for _, x := range o.all("ConfigMap") {
		data, _ := x["data"].(object)
		if text, ok := data["cluster.yaml"].(string); ok {
			found = append(found, parse(t, text)...)
		}
	}
	return found
}

// pods returns the template of every pod that the chart makes, by kind/name.
func (o objects) pods() map[string]object {
	templates := map[string]object{}
	for _, x := range o {
		name := x["kind"].(string) + "/" + at(x, "metadata.name").(string)
		switch x["kind"] {
		case "Pod":
			templates[name] = x
		case "StatefulSet", "Deployment", "Job":
			templates[name] = at(x, "spec.template").(object)
		case "CronJob":
			templates[name] = at(x, "spec.jobTemplate.spec.template").(object)
		}
	}
	return templates
}

// containers returns all containers of a pod.
func containers(pod object) []any {
	main, _ := at(pod, "spec.containers").([]any)
	before, _ := at(pod, "spec.initContainers").([]any)
	return slices.Concat(before, main)
}

// server returns the container of the server.
func (o objects) server(t *testing.T) any {
	t.Helper()
	return at(o.find(t, "StatefulSet", "myticket"), "spec.template.spec.containers.0")
}

// env returns the variables of a container that have values.
func env(container any) map[string]string {
	variables := map[string]string{}
	list, _ := at(container, "env").([]any)
	for _, v := range list {
		value, _ := at(v, "value").(string)
		variables[at(v, "name").(string)] = value
	}
	return variables
}

func annotations(x object) object {
	all, _ := at(x, "metadata.annotations").(object)
	return all
}

// annotation returns an annotation; empty if there is none.
func annotation(x object, name string) string {
	value, _ := annotations(x)[name].(string)
	return value
}
