plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "qndeploy.demo"
    compileSdk = 34
    defaultConfig {
        applicationId = "qndeploy.demo"
        minSdk = 24
        targetSdk = 34
        versionCode = 1
        versionName = "0.1.0"
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
}

dependencies {
    implementation(project(":core"))
    implementation(project(":engine-ort"))
    implementation(project(":engine-executorch"))
    implementation(libs.onnxruntime.android)
    androidTestImplementation(libs.junit)
    androidTestImplementation(libs.test.ext)
    androidTestImplementation(libs.test.runner)
}
