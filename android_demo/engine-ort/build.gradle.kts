plugins {
    `java-library`
}

// The classes of Java 8, not only its language: ByteBuffer's methods changed their signatures since.
tasks.withType<JavaCompile>().configureEach {
    options.release = 8
}

dependencies {
    api(project(":core"))
    compileOnly(libs.json)
    compileOnly(libs.onnxruntime.jvm) // the app brings onnxruntime-android, which has the same classes
}
