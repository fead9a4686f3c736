"""Command lines that can't be right, and what each is told. Files are those of `conftest.place`."""

from __future__ import annotations

READERS = ("android", "bench", "compress", "export", "import", "inspect", "report", "unpack", "verify")
COMMANDS = (*READERS, "demo", "devices", "targets")
WANTED = {"android": "BUILD", "bench": "BUILD", "compress": "SOURCE", "export": "SOURCE", "import": "SOURCE", "inspect": "FILE",
          "report": "BUILD", "unpack": "CONTAINER", "verify": "BUILD"}  # fmt: skip

USAGE = [
    ("deploy", "No such command 'deploy'. Did you mean 'demo'? See qn-deploy --help"),
    ("--json", "No such option '--json'"),
    ("--versions", "No such option '--versions'"),
    *[(f"{name} --nonsense", "No such option '--nonsense'") for name in COMMANDS],
    *[(name, f"Missing argument '{wanted}'. See qn-deploy {name} --help") for name, wanted in WANTED.items()],
    *[(f"{name} one two --out x" if name == "unpack" else f"{name} one two", "Got unexpected extra argument (two)") for name in READERS],
    ("demo here", "Got unexpected extra argument (here)"),
    ("targets arm", "Got unexpected extra argument (arm)"),
    ("devices list", "No such command 'list'"),
    ("devices setup", "Missing argument '{qemu|adb|ssh}'"),
    ("devices setup toaster", "'toaster' is not one of 'qemu', 'adb', 'ssh'"),
    ("devices setup qemu adb", "Got unexpected extra argument (adb)"),
    ("unpack model.qnz", "Missing option '--out'"),
    *[
        (line, f"requires an argument. See qn-deploy {line.split()[0]} --help")
        for line in (
            "android b --app", "android b --name", "bench b --batch", "bench b --model", "compress s --recipe", "compress s --max-size",
            "compress s --calibrate", "compress s --tune", "export s --target", "export s --only",
            "import s --weights", "import s --rest", "report b --out", "verify b --device",
        )
    ],
]  # fmt: skip

VALUES = [
    ("bench b --batch 0", "0 is not in the range 1<=x<=4096"),
    ("bench b --batch many", "'many' is not a valid whole number"),
    ("bench b --rounds 3", "3 is not in the range 4<=x<=100000"),
    ("compress s --max-size 0", "'0' is not a size; write 1.5MB, 300KB or a number of bytes"),
    ("compress s --max-size -1MB", "'-1MB' is not a size"),
    ("compress s --max-size small", "'small' is not a size"),
    ("compress s --max-size 3XB", "'3XB' is not a size"),
    ("compress s --max-drop much", "'much' is not a valid float"),
    ("compress s --max-drop -1", "--max-drop is -1.0; expected 0 or more points"),
    ("compress s --max-drop nan", "--max-drop is nan; expected 0 or more points"),
    ("compress s --tune forever", "'forever' is not a time; write 10min, 90s or 1h"),
    ("compress s --tune 0min", "'0min' is not a time"),
    ("compress s --tune -5min", "'-5min' is not a time"),
    ("compress s --tune-blocks 8", "--tune-blocks is the first part of tuning; say with --tune how long all of it may take"),
    ("compress s --tune-blocks -8 --tune 5min", "-8 is not in the range x>=0"),
    ("compress s --rate -1", "--rate is -1.0; expected 0 or more"),
    ("compress s --seed x", "'x' is not a valid int"),
    ("compress s --recipe nonsense", "there is no recipe 'nonsense'; expected auto, conv_net"),
    ("compress s --recipe missing.toml", "cannot read missing.toml: No such file"),
    ("compress s --recipe syntax.toml", "syntax.toml is no TOML"),
    ("compress s --recipe method.toml", "method.toml, rule 1: method is 'tabel'"),
    ("compress s --recipe field.toml", "field.toml, rule 2"),
    ("compress s --recipe type.toml", "type.toml, rule 1"),
    ("compress s --recipe rules.toml", "rules.toml"),
    ("compress s --recipe int8 --max-size 1MB", "give one of --recipe, --max-size and --max-drop"),
    ("compress s --max-drop 1 --max-size 1MB", "give one of --recipe, --max-size and --max-drop"),
    ("compress s --metric wrong_net:number", "--metric says what --max-drop counts; give both"),
    ("compress s --max-drop 1 --metric accuracy", "'accuracy' does not name a function; write package.module:function"),
    ("compress s --max-drop 1 --metric nowhere:accuracy", "there is no module 'nowhere' here"),
    ("compress s --max-drop 1 --metric wrong_net:nothing", "wrong_net has no function 'nothing'"),
    ("compress s --max-size 1MB --size-of coreml", "no exporter named coreml is installed; there are executorch, onnx"),
    ("import s --rest int4", "'int4' is not one of 'int8', 'float'"),
    ("export s --target vax", "'vax' is not one of 'arm', 'x86'"),
    ("export s --activations int4", "'int4' is not one of 'static'"),
    ("export s --centroid-range 0", "0 is not in the range 1<=x<=127"),
    ("export s --centroid-range 128", "128 is not in the range 1<=x<=127"),
    ("export s --memory much", "'much' is not one of 'expanded'"),
    ("export s --executorch-form round", "'round' is not one of 'delegate', 'graph'"),
    ("verify b --min-sqnr high", "'high' is not a valid float"),
    ("verify b --device toaster", "there is no device 'toaster'; expected cpu, qemu[:CPU], adb[:SERIAL] or ssh:HOST"),
    ("verify b --device ssh:", "there is no device 'ssh:'"),
]

SOURCES = [
    ("compress missing.pt", "cannot read missing.pt: No such file"),
    ("compress missing.pt2", "cannot read missing.pt2: No such file"),
    ("compress folder", "cannot read folder: Is a directory"),
    ("compress my_net", "cannot read my_net: No such file or directory; a source is a .pt2, a model.pt, or package.module:function"),
    ("compress nowhere:build --example x=float32[1,4]", "there is no module 'nowhere' here"),
    ("compress 'my net:build'", "cannot read my net:build: No such file"),
    ("compress wrong_net:nothing --example x=float32[1,4]", "wrong_net has no function 'nothing'"),
    ("compress wrong_net:three --example x=float32[1,4]", "wrong_net has no function 'three'"),
    ("compress wrong_net:number --example x=float32[1,4]", "wrong_net:number gives a int; expected a torch.nn.Module"),
    ("compress wrong_net:fails --example x=float32[1,4]", "calling wrong_net:fails failed with ValueError: no luck (wrong_net.py, line"),
    ("compress wrong_net:takes --example x=float32[1,4]", "calling wrong_net:takes failed with TypeError"),
    ("compress broken_net:build --example x=float32[1,4]", "importing broken_net failed with SyntaxError"),
    ("compress wrong_net:build", "wrong_net:build needs example inputs to be captured with: --calibrate data.npz, or --example"),
    ("compress model.pt", "compressed already"),
    ("compress model.pt --weights w.pt", "--weights is for a model that your code makes"),
    ("compress wrong_net:build --weights missing.pt --example x=float32[1,4]", "cannot read missing.pt: No such file"),
    ("compress wrong_net:build --weights data.npz --example x=float32[1,4]", "data.npz"),
    (
        "compress wrong_net:build --weights other.safetensors --example x=float32[1,4]",
        "other.safetensors does not fit Net: it lacks layer.weight, layer.bias",
    ),
    (
        "compress wrong_net:build --weights text.safetensors --example x=float32[1,4]",
        "text.safetensors is no checkpoint of torch.save and no safetensors file",
    ),
    ("compress wrong_net:build --example x", "x"),
    ("compress wrong_net:build --example x=float32", "x=float32"),
    ("compress wrong_net:build --example x=float99[1,4]", "float99"),
    ("compress wrong_net:build --example x=float32[a,4]", "float32[a,4]"),
    ("compress wrong_net:build --example x=float32[0,4]", "float32[0,4]"),
    ("compress wrong_net:build --example y=float32[1,4]", "Net fails on the example inputs [1, 4] with TypeError"),
    ("compress wrong_net:build --example x=float32[1,5]", "Net fails on the example inputs [1, 5] with RuntimeError:"),
    *[
        (f"{command} {file}", message)
        for command in ("compress", "export", "inspect")
        for file, message in (
            ("empty.pt", "empty.pt: is empty"),
            ("text.pt", "text.pt: is no program of qn-deploy"),
            ("zip.pt", "zip.pt: is damaged or cut short"),
            ("pickle.pt", "pickle.pt: is a torch.save checkpoint"),
        )
    ],
    ("export model.pt --only nonsense", "no exporter named nonsense is installed; there are executorch, onnx"),
    ("export model.pt --out text.pt", "text.pt can't be made: a file stands in its place"),
    ("export model.pt --out text.pt/build", "text.pt/build can't be made: text.pt is a file; choose another folder with --out"),
    ("export uncalibrated.pt", "the model has 2 convolutions"),
    ("export uncalibrated.pt --activations static", "static int8 activations need calibration data"),
    ("export model.pt --activations static-qnnpack", "one scale"),
    ("export model.pt --executorch-form graph --activations static", "--activations none"),
]

_NET = "import wrong_net:build --example x=float32[1,4]"
IMPORTS = [
    (
        "import model.pt --weights few.pth",
        "a checkpoint is imported into a network that your code makes, package.module:function; model.pt is none",
    ),
    ("import missing.pt2 --weights few.pth", "package.module:function; missing.pt2 is none"),
    ("import wrong_net:number --weights few.pth --example x=float32[1,4]", "wrong_net:number gives a int; expected a torch.nn.Module"),
    ("import wrong_net:build --weights few.pth", "wrong_net:build needs example inputs to be captured with"),
    (_NET, "the checkpoint to import is missing: --weights FILE"),
    *[
        (f"{_NET} --weights {file}", f"{file}{message}")
        for file, message in (
            ("few.pth", ": layer has 7 assignments; 4 rows of 2 blocks, as the network has, are 8"),
            ("code.pth", ": layer has the assignment 16; it has 16 centroids, counted from 0"),
            ("lone.pth", ": layer has no tensor centroids; a table is centroids and assignments"),
            ("block.pth", ": layer has blocks of 3 weights, which do not divide the network's rows of 4"),
            ("no_bias.pth", " does not fit Net: it lacks layer.bias"),
            ("other_net.pth", ": encoder has a table, but the network has no encoder.weight"),
            ("facts.pth", ": layer says n_blocks = 3; for the network's weight [4, 4] it is 2"),
            ("cut.pth", " is damaged or cut short"),
            ("objects.pth", " holds more than tensors, which could run code when it is opened"),
            ("pickle.pt", " holds no tables: expected LAYER.centroids and LAYER.assignments"),
            ("other.safetensors", " holds no tables"),
            ("text.pt", " is no checkpoint of torch.save and no safetensors file"),
            ("folder", ": Is a directory"),
        )
    ],
    (f"{_NET} --weights missing.pth", "cannot read missing.pth: No such file"),
]

DATA = [
    *[
        (f"export model.pt --calibrate {data}", message)
        for data, message in (
            ("missing.npz", "cannot read missing.npz: No such file"),
            ("empty.pt", "can't be read as an .npz"),
            ("text.pt", "can't be read as an .npz of plain arrays: it holds Python objects, or is a file of another kind"),
            ("zip.pt", "can't be read as an .npz"),
            ("single.npy", "is a single array; batches are an .npz"),
            ("none.npz", "none.npz holds no arrays"),
            ("names.npz", "names.npz holds arrays ['picture']; the model's inputs are ['image']"),
            ("shape.npz", "image has shape [4, 3, 8, 8]; the model takes [any, 1, 8, 8], samples first"),
            ("dtype.npz", "image is float64; the model takes float32"),
            ("nan.npz", "batch 0, input image holds NaN"),
            ("scalar.npz", "image holds no samples; expected them along the first axis"),
            ("folder", "folder holds no images"),
            ("broken_images", "broken.png can't be read as an image"),
            ("wrong_net:number", "wrong_net:number gives a int; expected a list or generator of batches"),
            ("wrong_net:no_batches", "wrong_net:no_batches yields no batches"),
            ("wrong_net:words", "wrong_net:words: batch 0 holds a str; expected tensors"),
            ("wrong_net:fails", "calling wrong_net:fails failed with ValueError: no luck"),
            ("wrong_net:stops", "taking batches from wrong_net:stops failed with ValueError: half way"),
            ("nowhere:batches", "there is no module 'nowhere' here"),
            ("data.npz --preprocess crop=8", "--preprocess is for a folder of images; data.npz is none"),
            ("images --preprocess size=3", "'size=3' is unknown in --preprocess"),
            ("images --preprocess resize=x", "resize=x in --preprocess: expected pixels"),
            ("images --preprocess resize=0", "resize=0 in --preprocess: expected pixels"),
            ("images --preprocess std=0", "std=0 in --preprocess: expected positive numbers"),
            ("images --preprocess mean=a", "mean=a in --preprocess: expected numbers"),
            ("images --preprocess mean=1,2", "mean has 2 numbers; expected 1 or one for each of 3 channels"),
            ("images --preprocess channels=cmyk", "channels=cmyk in --preprocess: expected rgb, bgr, gray"),
            ("images --preprocess 'crop=4 crop=4'", "crop stands twice in --preprocess"),
            ("images --preprocess crop=500", "less than crop=500x500; add resize=N to --preprocess"),
            ("images", "image has shape"),
        )
    ],
]  # fmt: skip

BUILDS = [
    *[
        (f"{command} {folder}", message)
        for command in ("verify", "report", "bench", "android", "inspect")
        for folder, message in (
            ("folder", "folder holds no manifest.json"),
            ("cut_build", "manifest.json is damaged"),
            ("other_build", "manifest.json is no manifest of qn-deploy"),
            ("old_build", "manifest.json has version 1, this qn-deploy reads version 5; export the model again"),
        )
    ],
    ("verify nowhere", "nowhere holds no manifest.json"),
    ("report nowhere", "nowhere holds no manifest.json"),
    ("bench nowhere", "nowhere holds no manifest.json"),
    ("android nowhere", "nowhere holds no manifest.json"),
    ("inspect nowhere.onnx", "nowhere.onnx"),
    ("inspect text.onnx", "text.onnx: this is no ONNX program (.onnx), or a damaged one"),
    ("inspect text.pte", "text.pte: this is no ExecuTorch program (.pte), or a damaged one"),
    ("inspect text.qnz", "text.qnz is neither a model.pt nor a program or container of the exporters executorch, onnx"),
    ("report folder --model missing.pt", "missing.pt"),
    ("bench folder --model text.pt", "text.pt: is no program of qn-deploy"),
    ("unpack missing.qnz --out x.pte", "cannot read missing.qnz: No such file"),
    ("unpack folder --out x.pte", "folder"),
    ("unpack text.qnz --out x.pte", "text.qnz is no container of the installed exporters"),
    ("unpack cut.qnz --out x.pte", "cut.qnz: no stock form: 26 bytes, less than its header of 64; it was cut short"),
    ("demo --out text.pt/demo", "text.pt/demo can't be made: Not a directory; choose another folder with --out"),
]

HEAVY = {"inspect text.pte", "demo --out text.pt/demo"}  # load a runtime before they know

LINES = [*USAGE, *VALUES, *SOURCES, *IMPORTS, *DATA, *BUILDS]
